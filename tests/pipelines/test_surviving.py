"""Curation on a simulated cluster whose nodes go and come, whose workers are killed, and whose object store fills."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipelines import inline
from pipelines.curation import run_segments
from pipelines.engine.step import Step
from pipelines.engine.table_index import index_table
from pipelines.ledger import ledger
from tests.support.deadly_steps import Heavy
from tests.support.python_process import run_python
from tests.support.toy_recipes import final_rows, toy_recipe, write_toys
from tests.support.toy_steps import Split

NAMES = [f"{letter}-2" for letter in "abcdefghijklmnopqr"] + ["deadly-1", "fatal-2", "none-0"]
"""Sources by their number of clips. `deadly` kills a worker of the first step, and `fatal` one of the last."""

PAYLOAD_BYTES = 8 << 20
"""Of a row: together more than the object stores of all nodes hold."""

# In a process of its own: this one may be connected to another Ray. Nodes can be added by the main thread alone.
SIMULATED = """
import json, os, sys, threading, time
from pathlib import Path
from ray.cluster_utils import Cluster
from cluster import session
from cluster.ray_settings import RaySettings
from pipelines import run
from pipelines.curation import run_segments
from pipelines.ledger import ledger
from tests.pipelines.test_surviving import recipe_of
from tests.support.toy_recipes import logged_calls

folder = Path(sys.argv[1])
store = {"object_store_memory": 80 << 20}
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **store})
nodes = [cluster.add_node(num_cpus=1, **store) for _ in range(3)]
cluster.wait_for_nodes()
os.environ["RAY_ADDRESS"] = cluster.address
said = {"events": [], "failed": ""}

def curate():
    try:
        curation = run_segments(recipe_of(folder, "out", 0.4, ("deadly", "fatal")), run)
        said["balanced"] = all(account.balanced for account in ledger(curation))
    except BaseException as error:
        said["failed"] = repr(error)

def lose_a_node(step):
    while len(set(logged_calls(folder / step))) < 5 and working.is_alive():
        time.sleep(0.1)
    cluster.remove_node(nodes.pop(), allow_graceful=False)
    nodes.append(cluster.add_node(num_cpus=1, **store))
    said["events"].append([step, len(set(logged_calls(folder / step)))])

with session.ray_connection(RaySettings(address="auto")):
    working = threading.Thread(target=curate)
    working.start()
    lose_a_node("scan")
    lose_a_node("encode")
    working.join()
(folder / "said.json").write_text(json.dumps(said))
cluster.shutdown()
"""


def recipe_of(folder: Path, out: str, pause_s: float, deadly: tuple[str, str]) -> Any:
    """Return a recipe of plain tasks, of clips, and of a pool of workers, with the words that kill in the two."""
    scan = Heavy(name="scan", word=deadly[0], calls=str(folder / "scan"), pause_s=pause_s, payload_bytes=PAYLOAD_BYTES)
    encode = Heavy(name="encode", word=deadly[1], calls=str(folder / "encode"), pause_s=pause_s, pooled=True)
    steps: list[Step] = [scan, Split(), encode]
    return toy_recipe(folder, steps, out)


@pytest.mark.slow
def test_curation_survives_nodes_workers_and_a_full_store(tmp_path: Path) -> None:
    write_toys(tmp_path, NAMES)
    run_python(SIMULATED, str(tmp_path), folder=tmp_path, timeout_s=300)
    said = json.loads((tmp_path / "said.json").read_text())
    assert (said["failed"], said["balanced"]) == ("", True)
    n_done = dict(said["events"])
    assert n_done["scan"] < len(NAMES), "a node was lost in the middle of each step"
    assert n_done["encode"] < 2 * len(NAMES)

    expected = {row["uid"]: row for row in final_rows(run_segments(recipe_of(tmp_path, "inline", 0, ("", "")), inline))}
    curation = run_segments(recipe_of(tmp_path, "out", 0, ("", "")), inline)
    found = {row["uid"]: row for row in final_rows(curation)}
    assert len(found) == len(final_rows(curation))
    assert all(account.balanced for account in ledger(curation))
    assert all(not index_table(state.folder, state.segment.input_column).n_doubled for state in curation.segments)
    killed = {uid: row for uid, row in found.items() if row["fate"] == "failed"}
    assert sorted(Path(row["source"]).stem for row in killed.values()) == ["deadly-1", "fatal-2"]
    assert all("WorkerDied" in row["fate_reason"] for row in killed.values())
    others = {uid: row for uid, row in expected.items() if Path(row["source"]).stem not in ("deadly-1", "fatal-2")}
    assert {uid: row for uid, row in found.items() if uid not in killed} == others
