"""Causes of fates: which part of a reason they keep."""

from __future__ import annotations

import pytest

from pipelines.report.causes import Cause, cause_of, error_class, error_message


@pytest.mark.parametrize(
    ("fate", "step", "reason", "expected"),
    [
        ("failed", "scan", "DecodeError: a.mp4: no frame", "DecodeError"),
        ("failed", "caption", 'refused caption: "I am sorry"', "refused caption"),
        ("failed", "scan", "no colon here", "no colon here"),
        ("duplicate", "dedup", "near-duplicate of a clip of x.mp4", "near-duplicate"),
        ("dropped", "keep", "motion under 0.02", "motion under 0.02"),
        ("dropped", "keep#2", "motion under 0.02", "motion under 0.02"),
        (
            "dropped",
            "encode",
            "0.52 s is shorter than 2.00 s, the duration of 17 frames at 8 fps",
            "… s is shorter than … s, the duration of 17 frames at 8 fps",
        ),
        ("kept", "", "", ""),
    ],
)
def test_a_cause_has_the_kind_of_the_reason(fate: str, step: str, reason: str, expected: str) -> None:
    assert cause_of(fate, step, reason) == Cause(fate, step, expected)


@pytest.mark.parametrize(
    ("reason", "name", "message"),
    [("OSError: a: b", "OSError", "a: b"), ("<b>x</b>: y", "<b>x</b>: y", "<b>x</b>: y")],
)
def test_an_error_has_a_class_and_a_message(reason: str, name: str, message: str) -> None:
    assert (error_class(reason), error_message(reason)) == (name, message)
