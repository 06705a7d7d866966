"""Joining of latent shards of one bucket to one shard. Loads without torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.compute as pc

from cluster import storage
from cluster.large_tables import first_of_each
from training.data.footer import DamagedError
from training.data.shards import ShardInfo, parse_shard_info, shard_schema, write_rows

N_THREADS = 4
"""Shards that are read at the same time."""


def join_shards(uri: str, parts: Sequence[str]) -> None:
    """Write the rows of shards as one shard, atomically, in the order of the parts and of the rows in each.

    A sample that several of them hold is written once, from the first. All rows are in memory, once. Raises
    `DamagedError` if a part cannot be read, or is of another bucket or autoencoder than the first.
    """
    with ThreadPoolExecutor(N_THREADS) as pool:
        found = list(pool.map(storage.read_table, parts))
    infos = [parse_shard_info(table.schema, part) for table, part in zip(found, parts, strict=True)]
    for info, part in zip(infos, parts, strict=True):
        for name in ("bucket", "autoencoder_identity", "fingerprint", "latent_shape"):
            if getattr(info, name) != getattr(infos[0], name):
                raise DamagedError(
                    f"{part}: its {name} is {getattr(info, name)}, and that of {parts[0]} is {getattr(infos[0], name)}"
                )
    joined = dataclasses.replace(infos[0], fidelity=join_fidelity(infos))
    schema = shard_schema(joined)
    rows = pa.concat_tables(table.select(schema.names).cast(schema) for table in found)
    found.clear()
    if pc.count_distinct(rows["uid"]).as_py() < len(rows):
        rows = first_of_each(rows, "uid")
    write_rows(uri, rows, joined)


def join_fidelity(infos: Sequence[ShardInfo]) -> Mapping[str, float] | None:
    """Return the fidelity of shards together, by the rows that were checked in each; None if none was."""
    checked = [info.fidelity for info in infos if info.fidelity]
    if not checked:
        return None
    n_rows = sum(fidelity["rows"] for fidelity in checked)
    means = {
        name: sum(fidelity[name] * fidelity["rows"] for fidelity in checked) / n_rows for name in ("psnr_db", "ssim")
    }
    return {"rows": n_rows, **means, "min_psnr_db": min(fidelity["min_psnr_db"] for fidelity in checked)}
