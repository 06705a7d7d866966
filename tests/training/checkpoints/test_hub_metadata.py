"""The metadata of cards is what `huggingface_hub` reads."""

from __future__ import annotations

import pytest
from huggingface_hub import DatasetCard

from training.checkpoints.hub_metadata import TAGS, front_matter, hub_id, license_keys, size_category


def test_metadata_is_read_by_the_hub() -> None:
    head = {"pretty_name": "a: 'b'\n---\n# c", **license_keys(["CC-BY-4.0"]), "tags": list(TAGS), "language": None}
    card = DatasetCard(front_matter(head) + "# Title\n")
    assert card.data.to_dict() == {"pretty_name": "a: 'b'\n---\n# c", "license": "cc-by-4.0", "tags": list(TAGS)}
    assert card.text.strip() == "# Title"


@pytest.mark.parametrize(
    ("stated", "keys"),
    [
        ([], {}),
        (["CC0-1.0"], {"license": "cc0-1.0"}),
        (["cc-by-4.0", "cc0-1.0", "CC0-1.0"], {"license": ["cc-by-4.0", "cc0-1.0"]}),
        (["cc-by-4.0", "unknown"], {"license": "unknown"}),
        (["Pexels licence", "mit"], {"license": ["mit", "other"], "license_name": "Pexels licence"}),
    ],
)
def test_licences_are_those_of_the_hub(stated: list[str], keys: dict[str, object]) -> None:
    assert license_keys(stated) == keys


def test_sizes_and_ids_have_the_form_of_the_hub() -> None:
    assert [size_category(n) for n in (0, 999, 1000, 10**6, 5 * 10**9)] == [
        "n<1K",
        "n<1K",
        "1K<n<10K",
        "1M<n<10M",
        "1B<n<10B",
    ]
    assert hub_id("Wan-AI/Wan2.1-T2V-1.3B-Diffusers") == "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"
    for path in (None, "drawn-world", "/data/wan", "./wan/model", "a/b/c", "../wan"):
        assert hub_id(path) is None
