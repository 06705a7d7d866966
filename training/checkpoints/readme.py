"""The README of a compact export: what the model makes, and how it was trained, from the records of its run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cluster.yaml_text import dump
from training.checkpoints.model_card import ModelCard
from training.models.diffusers import Diffusers
from training.settings import TrainSettings
from training.tracking.metrics import Record

README = "README.md"


@dataclass(frozen=True)
class Training:
    """The records of a training run and the counts of its data."""

    settings: Mapping[str, Any]
    """Content of the run's `settings.json`."""
    records: Sequence[Record]
    """Records of its `metrics.jsonl`."""
    data: Mapping[str, int]
    """Number of training samples by kind, video or image."""


def model_readme(
    name: str,
    card: ModelCard,
    n_weights: int,
    training: Training | None,
    scores: Sequence[Mapping[str, Any]] = (),
    dtype: str = "bfloat16",
) -> str:
    """Return the text of the README. `scores` are the `metrics` of an evaluation's `summary.json`."""
    videos = [bucket for bucket in card.buckets if not bucket.endswith("x1")]
    images = [bucket for bucket in card.buckets if bucket.endswith("x1")]
    validation = "" if card.val_loss is None else f", validation loss {card.val_loss:.4f}"
    lines = [
        f"# {name}",
        "",
        *_kind_lines(name, card, n_weights, dtype),
        "",
        "| | |",
        "| --- | --- |",
        f"| weights | averages of step {card.step:,} of {card.trained_steps or card.step:,}{validation} |",
        f"| videos, width x height x frames | {', '.join(videos) or 'none'} at {card.fps:g} frames per second |",
        f"| images | {', '.join(bucket.removesuffix('x1') for bucket in images) or 'none'} |",
        f"| autoencoder | `{card.autoencoder_identity}` |",
        f"| text encoder | `{card.text_encoder_identity}` |",
        f"| started from | {card.init or _published(card) or 'random weights'} |",
        f"| seed | {card.seed} |",
        f"| training data | fingerprint `{card.data}` |",
        f"| written by | worldloom {card.worldloom} |",
    ]
    if training is not None:
        lines += _training_lines(training)
    if scores:
        lines += _score_lines(scores)
    return "\n".join(lines) + "\n"


def _published(card: ModelCard) -> str | None:
    """Return the path of the published model that training began with; None if it did not."""
    return card.model.path if card.init is None and isinstance(card.model, Diffusers) else None


def _kind_lines(name: str, card: ModelCard, n_weights: int, dtype: str) -> list[str]:
    """Return what the weights are and how they are sampled."""
    millions = f"{n_weights / 1e6:.3g} million" if card.adapter else f"{n_weights / 1e6:.1f} million"
    if card.adapter is not None:
        # A published model is no export, and the adapter's card names it.
        command = f"--model {name}" if _published(card) else f"--model {card.adapter.base} --adapter {name}"
        return [
            f"An adapter (LoRA) of rank {card.adapter.rank} of the text-to-video model `{card.adapter.base}`.",
            f"It has {millions} weights in float32.",
            "",
            "```",
            f'worldloom sample {command} --prompt "..."',
            "```",
            "",
            f"Its base has the weights `{card.adapter.base_identity}`.",
        ]
    return [
        f"A text-to-video model `{card.model.name}` of {millions} weights in {dtype}.",
        "",
        "```",
        f'worldloom sample --model {name} --prompt "..."',
        "```",
        "",
        f"To train on from its weights: `train: {{init: {name}}}`, on latents of the same autoencoder.",
    ]


def _training_lines(training: Training) -> list[str]:
    hours = sum(record["step_s"] for record in training.records) / 3600
    counts = " and ".join(f"{count:,} {kind}s" for kind, count in sorted(training.data.items(), reverse=True))
    tokens = sum(record.get("tokens", 0) for record in training.records)
    values = {key: value for key, value in training.settings.items() if key in TrainSettings.model_fields}
    settings = TrainSettings.model_validate(values)
    changed = settings.model_dump(mode="json", exclude_defaults=True, exclude={"init"})
    for part in ("model", "objective"):
        named = getattr(settings, part)
        if part in changed:
            changed[part] = {"name": named.name} | named.model_dump(mode="json", exclude_defaults=True)
    if "conditioning" in changed:
        # A share that is not written would be 0, whatever the default.
        shares = settings.conditioning.model_dump(mode="json")
        changed["conditioning"] = {kind: share for kind, share in shares.items() if share}
    return [
        "",
        "## Training",
        "",
        f"{len(training.records):,} steps with {tokens:,} latent tokens took {hours:.1f} hours, on {counts}.",
        "",
        "```yaml",
        dump({"train": changed}).rstrip(),
        "```",
    ]


def _score_lines(scores: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = [
        "",
        "## Evaluation",
        "",
        "Means and 95 % intervals over held-out prompts, by `worldloom evaluate`.",
        "",
        "| metric | better | true | real clips | generated | without a caption |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in scores:
        cells = [_cell(row.get(clip_set)) for clip_set in ("real", "generated", "null")]
        target = "" if row["target"] is None else f"{row['target']:g}"
        unit = f" ({row['unit']})" if row["unit"] else ""
        lines.append(f"| {row['metric']}{unit} | {row['better']} | {target} | {' | '.join(cells)} |")
    return lines


def _cell(found: Mapping[str, float] | None) -> str:
    if found is None:
        return ""
    return f"{found['mean']:.3g} [{found['low']:.3g}, {found['high']:.3g}] of {found['cases']}"
