"""Groups of clips: what generated clips show how often, beside the real clips of the same captions.

A model that learnt from unbalanced footage makes common things more often than its prompts ask for. So each class of a
group, such as a colour or a speed, has its number among the real and among the generated clips of the same prompts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from training.evaluation.main_colour import COLOURS
from training.evaluation.results import NO_FORM, ClipResult, ClipSet

SETS: tuple[ClipSet, ...] = ("real", "generated")
QUANTILES = (0.2, 0.4, 0.6, 0.8)
"""Quantiles of real clips that divide a measure into classes, each with a fifth of the real clips."""
LEVELS = ("lowest", "low", "middle", "high", "highest")
MEASURES = {"motion_amount": "Motion, fifths of real clips", "sharpness": "Sharpness, fifths of real clips"}
SHOWN = {
    "main_colour": "Main colour",
    "background": "Background",
    "camera": "Camera",
    "shape_colours": "Colours of shapes",
    "shape_forms": "Forms of shapes",
    "n_shapes": "Number of shapes",
}


def group_counts(results: Sequence[ClipResult]) -> list[dict[str, Any]]:
    """Return the clips of each set by group: `{name, title, labels, counts: {real: [...], generated: [...]}}`.

    The groups are `MEASURES` and `SHOWN`. Those that one of the sets has no value of are left out.
    """
    by_set = {clip_set: [one for one in results if one.clip_set == clip_set] for clip_set in SETS}
    shown = {clip_set: [_shown(one.found) for one in of_set] for clip_set, of_set in by_set.items()}
    found = [_fifths(name, title, by_set) for name, title in MEASURES.items()]
    found += [_named(name, title, shown) for name, title in SHOWN.items()]
    return [group for group in found if all(sum(group["counts"][clip_set]) for clip_set in SETS)]


def _shown(found: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return the classes of a clip in each group of `SHOWN`, from what was found in it."""
    bodies = [str(body).split() for body in found.get("bodies", [])]
    single = {name: [found[name]] if found.get(name) else [] for name in ("main_colour", "background", "camera")}
    return {
        **single,
        "shape_colours": [words[0] for words in bodies],
        "shape_forms": [words[-1] if words[-1] != NO_FORM else "not told" for words in bodies],
        "n_shapes": [str(len(bodies))] if "bodies" in found else [],
    }


def _named(name: str, title: str, shown: Mapping[ClipSet, Sequence[Mapping[str, Sequence[str]]]]) -> dict[str, Any]:
    """Return a group of `SHOWN`: colours and numbers in their order, others by frequency among real clips."""
    counted = {clip_set: Counter(value for one in of_set for value in one[name]) for clip_set, of_set in shown.items()}
    seen = counted["real"] + counted["generated"]
    if name == "main_colour":
        labels = [label for label in COLOURS if seen[label]]
    elif name == "n_shapes":
        labels = sorted(seen, key=int)
    else:
        labels = sorted(seen, key=lambda label: (-counted["real"][label], label))
    counts = {clip_set: [counter[label] for label in labels] for clip_set, counter in counted.items()}
    return {"name": name, "title": title, "labels": [label.replace("_", " ") for label in labels], "counts": counts}


def _fifths(name: str, title: str, by_set: Mapping[ClipSet, Sequence[ClipResult]]) -> dict[str, Any]:
    """Return a group of `MEASURES`."""
    values = {
        clip_set: np.array([case.value for one in of_set for case in one.cases.get(name, ())])
        for clip_set, of_set in by_set.items()
    }
    edges = np.quantile(values["real"], QUANTILES) if len(values["real"]) else np.zeros(len(QUANTILES))
    counts = {
        clip_set: np.bincount(np.searchsorted(edges, found, side="right"), minlength=len(LEVELS)).tolist()
        for clip_set, found in values.items()
    }
    return {"name": name, "title": title, "labels": list(LEVELS), "counts": counts}
