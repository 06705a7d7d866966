"""The card of a data set: its figures add up, and what footage says is not markup."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
from huggingface_hub import DatasetCard

from cluster import storage
from pipelines.dataset.splits import splits_uri
from pipelines.report.data_card import data_card
from pipelines.report.data_card_text import data_card_text
from tests.support.report_tables import WHEN, make_curation, make_rows


def card_of(rows: list[dict[str, Any]], folder: Path) -> dict[str, Any]:
    return data_card(*make_curation(folder, rows), WHEN)


def kept_clips(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in rows if row["fate"] == "kept" and row.get("clip_index") is not None]


def test_licences_and_generated_files_are_counted(tmp_path: Path) -> None:
    rows = make_rows()
    names = ("cc-by-4.0", "CC0-1.0", "unknown")
    for row in rows:
        row["license"] = names[int(row["source_uid"], 16) % 3]
        row["generated"] = row["license"] == "unknown"
    facts, kept = card_of(rows, tmp_path), kept_clips(rows)
    for found in facts["licenses"]:
        chosen = [row for row in kept if row["license"] == found["license"]]
        assert found["clips"] == len(chosen)
        assert found["sources"] == len({row["source_uid"] for row in chosen})
        assert abs(found["hours"] - sum(row["duration_s"] for row in chosen) / 3600) < 1e-4
    assert sum(found["clips"] for found in facts["licenses"]) == sum(facts["clips"].values()) == len(kept)
    assert facts["generated"] == sum(row["license"] == "unknown" for row in kept)
    text = data_card_text(facts)
    assert DatasetCard(text).data.license == "unknown"
    assert "| unknown |" in text
    assert json.loads(json.dumps(facts)) == facts


def test_one_licence_of_all_clips_is_that_of_the_whole(tmp_path: Path) -> None:
    rows = make_rows()
    for row in rows:
        row["license"] = "CC-BY-4.0"
    head = DatasetCard(data_card_text(card_of(rows, tmp_path))).data
    assert (head.license, head.size_categories, head.task_categories) == ("cc-by-4.0", ["n<1K"], ["text-to-video"])


def test_texts_of_footage_are_no_markup(tmp_path: Path) -> None:
    rows = make_rows()
    hostile = "</table><script>alert(1)</script> | `x` [a](javascript:b)\n# c"
    for row in rows:
        row["license"] = hostile
        if row.get("caption") is not None:
            row["caption"] = f"{hostile} <img src=x onerror=y>"
    body = DatasetCard(data_card_text(card_of(rows, tmp_path))).text.partition("## Recipe")[0]
    assert "<" not in body
    assert "[a](" not in body
    assert "\n# c" not in body
    for line in body.splitlines():
        if line.startswith("| &lt;/table"):
            assert line.replace("\\|", "").count("|") == 5


def test_classes_below_one_percent_are_named_as_rare(tmp_path: Path) -> None:
    rows = make_rows(400)
    kept = kept_clips(rows)
    for row in kept:
        row["camera"] = "still"
    kept[0]["camera"] = "roll"
    lines = data_card_text(card_of(rows, tmp_path)).splitlines()
    assert "| Camera | still 100% | roll |" in lines


def test_splits_have_their_own_counts(tmp_path: Path) -> None:
    rows = make_rows()
    recipe, curation = make_curation(tmp_path, rows)
    uids = [row["uid"] for row in kept_clips(rows)]
    splits = ["val" if number % 5 == 0 else "train" for number in range(len(uids))]
    storage.write_table(splits_uri(recipe.out_uri), pa.table({"uid": uids, "split": splits}))
    facts = data_card(recipe, curation, WHEN)
    assert facts["clips"] == {"train": splits.count("train"), "val": splits.count("val")}
    assert f"| val | {splits.count('val')} |" in data_card_text(facts)


def test_folders_of_this_machine_are_left_out(tmp_path: Path) -> None:
    facts = card_of(make_rows(), tmp_path)
    assert facts["sources"] == ["/".join((tmp_path / "*.mp4").parts[-3:])]
    assert f"{tmp_path.parent.parent}" not in json.dumps(facts) + data_card_text(facts)
