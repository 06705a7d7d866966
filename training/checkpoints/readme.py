"""The README of a model: what it makes, how it was trained and what was measured, from the records of its run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cluster.yaml_text import dump
from training.checkpoints.hub_metadata import TAGS, front_matter, hub_id, license_keys
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


@dataclass(frozen=True)
class ModelRecord:
    """Everything that the card of a model says."""

    name: str
    card: ModelCard
    n_weights: int
    training: Training | None = None
    """None if the records of the run are gone."""
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    """Content of an evaluation's `summary.json`; empty if these weights were not evaluated."""
    audit: Mapping[str, Any] = field(default_factory=dict)
    """Content of the `summary.json` of an audit of what was learnt by heart; empty if there was none."""
    dtype: str = "bfloat16"
    license: str | None = None
    """Licence that the model is given away under."""
    unmarked: Sequence[str] = ()
    """Marks that the recipe leaves out of its samples."""

    @property
    def published(self) -> str | None:
        """Path of the published model that training began with; None if it did not."""
        return self.card.model.path if self.card.init is None and isinstance(self.card.model, Diffusers) else None

    @property
    def base(self) -> str | None:
        """Path or name of the weights that these were made from; None if training began at random ones."""
        return self.card.adapter.base if self.card.adapter else self.card.init or self.published


def model_readme(record: ModelRecord) -> str:
    """Return the text of the README, with the metadata of Hugging Face at its head."""
    card = record.card
    videos = [bucket for bucket in card.buckets if not bucket.endswith("x1")]
    images = [bucket for bucket in card.buckets if bucket.endswith("x1")]
    validation = "" if card.val_loss is None else f", validation loss {card.val_loss:.4f}"
    marks = " and ".join(f"no {mark}" for mark in record.unmarked) or "content credentials and an invisible watermark"
    lines = [
        f"# {record.name}",
        "",
        *_kind_lines(record),
        "",
        "| | |",
        "| --- | --- |",
        f"| weights | averages of step {card.step:,} of {card.trained_steps or card.step:,}{validation} |",
        f"| videos, width x height x frames | {', '.join(videos) or 'none'} at {card.fps:g} frames per second |",
        f"| images | {', '.join(bucket.removesuffix('x1') for bucket in images) or 'none'} |",
        f"| autoencoder | `{card.autoencoder_identity}` |",
        f"| text encoder | `{card.text_encoder_identity}` |",
        f"| started from | {card.init or record.published or 'random weights'} |",
        f"| seed | {card.seed} |",
        f"| training data | fingerprint `{card.data}` |",
        f"| marks of its samples | {marks} |",
        f"| written by | worldloom {card.worldloom} |",
    ]
    if record.training is not None:
        lines += _training_lines(record.training)
    if scores := record.evaluation.get("metrics"):
        lines += _score_lines(scores)
    if sentences := _memorisation_sentences(record):
        lines += ["", "## Memorisation", "", *sentences]
    return front_matter(_metadata(record)) + "\n".join(lines) + "\n"


def model_data(record: ModelRecord) -> dict[str, Any]:
    """Return what the README says as JSON data."""
    training = record.training
    return {
        "name": record.name,
        "license": record.license,
        "weights": record.n_weights,
        "card": json.loads(record.card.to_bytes()),
        "training": training and {**_totals(training), "settings": _changed_settings(training)},
        "evaluation": record.evaluation.get("metrics") or None,
        "memorisation": _memorisation_facts(record.evaluation.get("memorisation")),
        "audit": _audit_facts(record.audit),
        "unmarked": list(record.unmarked),
    }


def _metadata(record: ModelRecord) -> dict[str, Any]:
    """Return the metadata of Hugging Face: `base_model` only if it has the form of an id there."""
    base = hub_id(record.base)
    metrics = [
        {"type": row["metric"], "name": row["metric"], "value": round(row["generated"]["mean"], 4)}
        for row in record.evaluation.get("metrics", ())
        if row.get("generated") is not None
    ]
    result = {
        "task": {"type": "text-to-video"},
        "dataset": {"type": "held-out", "name": "held-out prompts of worldloom evaluate"},
        "metrics": metrics,
    }
    return {
        **license_keys([record.license] if record.license else []),
        "library_name": "worldloom",
        "pipeline_tag": "text-to-video",
        "tags": list(TAGS),
        "base_model": base,
        "base_model_relation": base and ("adapter" if record.card.adapter else "finetune"),
        "model-index": [{"name": record.name, "results": [result]}] if metrics else None,
    }


def _kind_lines(record: ModelRecord) -> list[str]:
    """Return what the weights are and how they are sampled."""
    name, card, n_weights = record.name, record.card, record.n_weights
    millions = f"{n_weights / 1e6:.3g} million" if card.adapter else f"{n_weights / 1e6:.1f} million"
    if card.adapter is not None:
        # A published model is no export, and the adapter's card names it.
        command = f"--model {name}" if record.published else f"--model {card.adapter.base} --adapter {name}"
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
        f"A text-to-video model `{card.model.name}` of {millions} weights in {record.dtype}.",
        "",
        "```",
        f'worldloom sample --model {name} --prompt "..."',
        "```",
        "",
        f"To train on from its weights: `train: {{init: {name}}}`, on latents of the same autoencoder.",
    ]


def _totals(training: Training) -> dict[str, Any]:
    """Return the sums over a run: steps, tokens, hours and training samples by kind."""
    return {
        "steps": len(training.records),
        "tokens": sum(record.get("tokens", 0) for record in training.records),
        "hours": round(sum(record["step_s"] for record in training.records) / 3600, 4),
        "samples": dict(training.data),
    }


def _changed_settings(training: Training) -> dict[str, Any]:
    """Return the settings of a run that are not the defaults, as a recipe's section `train` has them."""
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
    return changed


def _training_lines(training: Training) -> list[str]:
    totals = _totals(training)
    counts = " and ".join(f"{count:,} {kind}s" for kind, count in sorted(training.data.items(), reverse=True))
    tokens, hours = f"{totals['tokens']:,} latent tokens", totals["hours"]
    time = f"{hours:.1f} hours" if hours >= 1 else f"{max(1, round(60 * hours))} min"
    return [
        "",
        "## Training",
        "",
        f"{totals['steps']:,} steps with {tokens} took {time}, on {counts}.",
        "",
        "```yaml",
        dump({"train": _changed_settings(training)}).rstrip(),
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


def _memorisation_facts(found: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return the counts of an evaluation's comparison with training clips."""
    if found is None:
        return None
    return {
        "share_nearer": found["share_nearer"],
        "generated": len(found["generated"]),
        "held_out": len(found["held_out"]),
    }


def _audit_facts(found: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the counts of an audit of what was learnt by heart."""
    if not found:
        return None
    return {name: found[name] for name in ("rate", "clips", "seeds")} | {"flagged": len(found["flagged"])}


def _memorisation_sentences(record: ModelRecord) -> list[str]:
    sentences = []
    if found := _audit_facts(record.audit):
        flags = f"{found['flagged']:,} of them are flagged" if found["flagged"] else "none of them is flagged"
        sentences.append(
            f"Of {found['clips']:,} training clips that `worldloom audit --model` tested for being learnt by heart, "
            f"{flags}; at most {found['rate']:.0%} of audits flag a clip if none is."
        )
    if near := _memorisation_facts(record.evaluation.get("memorisation")):
        sentences.append(
            f"{near['share_nearer']:.1%} of {near['generated']:,} clips generated from held-out captions are nearer to "
            f"a training clip than 95 % of {near['held_out']:,} held-out clips are; 5 % is what chance gives."
        )
    return sentences


def _cell(found: Mapping[str, float] | None) -> str:
    if found is None:
        return ""
    return f"{found['mean']:.3g} [{found['low']:.3g}, {found['high']:.3g}] of {found['cases']}"
