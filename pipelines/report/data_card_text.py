"""The card of a data set as Markdown, in the sections that Hugging Face's cards have.

Names, captions and licences come from footage and are untrusted: they cannot end a cell of a table, or become markup.
"""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cluster.yaml_text import dump
from training.checkpoints.hub_metadata import TAGS, front_matter, license_keys, size_category

MAX_WORDS = 24
MAX_LISTED = 12
"""Classes of a group, and licences, that are listed; the JSON has all."""
RARE_SHARE = 0.01
"""A class with a smaller share of the clips is named as rare."""
TITLES = {"duration_s": "duration of videos, s", "motion": "motion", "luma": "brightness (luma)"}


def data_card_text(facts: Mapping[str, Any]) -> str:
    """Return the Markdown of the facts of `data_card`, with the metadata of Hugging Face at its head."""
    n_clips = sum(facts["clips"].values())
    stated = [row["license"] for row in facts["licenses"]]
    head = front_matter(
        {
            "pretty_name": facts["name"],
            **license_keys(stated),
            "task_categories": ["text-to-video"],
            "size_categories": [size_category(n_clips)],
            "tags": list(TAGS),
        }
    )
    size = f"{n_clips:,} clips and images, {sum(facts['hours'].values()):,.4g} hours"
    lines = [
        f"# {_safe(facts['name'])}",
        "",
        f"{size}, curated by worldloom {facts['worldloom']} for the training of a text-to-video model.",
        "",
        *_table(("split", "clips and images", "hours"), _split_rows(facts)),
        "",
        *_source_lines(facts),
        *_selection_lines(facts),
        *_content_lines(facts),
        *_caption_lines(facts),
        *_sample_lines(facts.get("dataset")),
        "## Recipe",
        "",
        "```yaml",
        dump(facts["recipe"]).rstrip(),
        "```",
    ]
    return head + "\n".join(lines) + "\n"


def _split_rows(facts: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    for split, count in facts["clips"].items():
        yield split, f"{count:,}", f"{facts['hours'][split]:,.4g}"


def _source_lines(facts: Mapping[str, Any]) -> list[str]:
    licenses = [
        (_safe(row["license"]), f"{row['sources']:,}", f"{row['clips']:,}", f"{row['hours']:,.4g}")
        for row in facts["licenses"][:MAX_LISTED]
    ]
    more = len(facts["licenses"]) - MAX_LISTED
    lines = [
        "## Sources and licences",
        "",
        "Files: " + ", ".join(f"`{_code(pattern)}`" for pattern in facts["sources"]) + ".",
        "Licences are those that the files' sidecars state.",
        "",
        *_table(("licence", "files with kept clips", "clips and images", "hours"), licenses),
        "",
        *([f"{more} more licences are in the card's JSON.", ""] if more > 0 else []),
    ]
    if (generated := facts["generated"]) is not None:
        what = "of files that say that a model generated them, by content credentials, XMP or a watermark."
        lines += [f"{generated:,} of {sum(facts['clips'].values()):,} clips and images are {what}", ""]
    return lines


def _selection_lines(facts: Mapping[str, Any]) -> list[str]:
    rows = [
        (account["level"], f"{account['inputs']:,}", *(f"{count:,}" for count in account["fates"].values()))
        for account in facts["ledger"]
    ]
    fates = tuple(facts["ledger"][0]["fates"]) if facts["ledger"] else ()
    lost = _safe(facts["losses"])
    return [
        "## Selection",
        "",
        *_table(("", "inputs", *fates), rows),
        "",
        *([f"Left out: {lost}.", ""] if lost else ["Nothing was left out.", ""]),
    ]


def _content_lines(facts: Mapping[str, Any]) -> list[str]:
    measures = [(TITLES[name], *(f"{value:.3g}" for value in values)) for name, values in facts["measures"].items()]
    groups = [(_safe(group["title"]), _shares(group["clips"]), _rare(group["clips"])) for group in facts["groups"]]
    lines = ["## Content", ""]
    if measures:
        lines += [*_table(("measure of kept clips", "5 %", "median", "95 %"), measures), ""]
    if groups:
        lines += [*_table(("", "shares of kept clips", f"below {RARE_SHARE:.0%}"), groups), ""]
    lines += ["A model learns what is common here, and rare classes hardly.", ""]
    return lines


def _caption_lines(facts: Mapping[str, Any]) -> list[str]:
    words, n = facts["words"]["clips"], facts["words"]["captions"]
    kinds = (facts.get("dataset") or {}).get("caption_kinds", {})
    lines = ["## Captions", "", f"{n:,} of {sum(facts['clips'].values()):,} clips and images have a caption."]
    if kinds:
        counts = ", ".join(f"{_safe(kind)} {count:,}" for kind, count in kinds.items())
        lines.append(f"Main captions by kind: {counts}.")
    if n:
        shares = ", ".join(f"{_safe(word)} {count / n:.0%}" for word, count in list(words.items())[:MAX_WORDS])
        lines.append(f"Most frequent words, with the share of captions that have each: {shares}.")
    return [*lines, ""]


def _sample_lines(dataset: Mapping[str, Any] | None) -> list[str]:
    if dataset is None:
        return []
    buckets = [(bucket, f"{count:,}") for bucket, count in dataset["buckets"].items()]
    splits = ", ".join(f"{split} {count:,}" for split, count in dataset["splits"].items())
    return [
        "## Samples",
        "",
        f"{dataset['samples']:,} samples: {splits}.",
        f"Latents are of the autoencoder `{_code(dataset['autoencoder_identity'])}`,",
        f"text embeddings of the encoder `{_code(dataset['text_encoder_identity'])}`.",
        f"The data set's fingerprint is `{dataset['fingerprint']}`.",
        "",
        *_table(("width x height x frames", "samples"), buckets),
        "",
    ]


def _shares(counts: Mapping[str, int]) -> str:
    total, listed = sum(counts.values()), list(counts.items())[:MAX_LISTED]
    texts = [f"{_safe(name)} {count / total:.0%}" for name, count in listed if count >= RARE_SHARE * total]
    return ", ".join(texts) or "none above"


def _rare(counts: Mapping[str, int]) -> str:
    total = sum(counts.values())
    return ", ".join(_safe(name) for name, count in counts.items() if count < RARE_SHARE * total)


def _table(names: Sequence[str], rows: Iterator[tuple[str, ...]] | Sequence[tuple[str, ...]]) -> list[str]:
    head = [f"| {' | '.join(names)} |", f"| {' | '.join('---' for _ in names)} |"]
    return [*head, *(f"| {' | '.join(row)} |" for row in rows)]


def _safe(text: str) -> str:
    """Return text that is neither markup nor the end of a cell or a line."""
    flat = html.escape(" ".join(text.split()), quote=False)
    for character in "\\|*_`[]":
        flat = flat.replace(character, f"\\{character}")
    return flat


def _code(text: str) -> str:
    """Return text for a span of code."""
    return " ".join(text.split()).replace("`", "'")
