"""Settings of tasks: combinations that mean nothing are refused with the fix, and spans are read."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.config import ConfigError, parse_options, validate
from training.sampling.settings import SampleSettings
from training.sampling.task_settings import PromptSpan, parse_span


def sample_settings(**values: Any) -> SampleSettings:
    return validate(SampleSettings, {"prompt": "x", **values})


@pytest.mark.parametrize(
    "values",
    [
        {"video": "a.mp4", "extend": "forward", "context": 2, "context_noise": 0.1},
        {"video": "a.mp4", "connect": "b.mp4"},
        {"loop": True},
        {"video": "a.mp4", "loop": True},
        {"video": "a.mp4", "edit": "sdedit", "strength": 0.4},
        {"video": "a.mp4", "edit": "flowedit", "source_prompt": "y"},
        {"window": 2, "seconds": 60, "spans": ["0-5: y", "5-7.5: z"]},
        {"window": 2, "seconds": 9, "first": "a.png"},
        {"spans": ["0-1: y"]},
    ],
)
def test_tasks_are_accepted(values: dict[str, Any]) -> None:
    settings = sample_settings(**values)
    assert validate(SampleSettings, settings.model_dump(mode="json")) == settings


@pytest.mark.parametrize(
    ("values", "key", "message"),
    [
        ({"edit": "sdedit"}, "edit", "edit needs a video; name its file with video"),
        ({"extend": "forward"}, "extend", "extend needs a video"),
        ({"video": "a.mp4"}, "video", "add extend, connect, loop or edit"),
        ({"video": "a.mp4", "window": 2, "seconds": 9}, "video", "add extend, connect, loop or edit"),
        ({"video": "a.mp4", "extend": "forward", "loop": True}, "loop", "extend and loop are two tasks; remove one"),
        ({"loop": True, "seconds": 0}, "seconds", "an image of 1 frame, and loop needs a length"),
        ({"loop": True, "first": "a.png"}, "first", "first is an image of a sample without loop"),
        ({"window": 2, "seconds": 9, "last": "a.png"}, "last", "last is an image of a sample without window"),
        ({"video": "a.mp4", "edit": "flowedit"}, "edit", "flowedit needs source_prompt"),
        ({"source_prompt": "y"}, "source_prompt", "source_prompt is for edit: flowedit"),
        ({"strength": 0.5}, "strength", "strength is that of an edit"),
        ({"context": 2}, "context", "context has no effect without extend"),
        ({"window": 1, "seconds": 9}, "context", "context 1 is not shorter than window 1"),
        ({"loop": True, "spans": ["0-1: y"]}, "spans", "loop has one prompt; remove spans"),
        ({"spans": ["2-3: y"]}, "spans", "span 2-3 begins after the video, which has 2 seconds"),
    ],
)
def test_wrong_combinations_name_the_option_and_the_fix(values: dict[str, Any], key: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_options(SampleSettings, {"prompt": "x", **values})
    assert str(caught.value).startswith(f"--{key.replace('_', '-')} ")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("spans", "message"),
    [
        (["0-4: y", "3-5: z"], "spans 0-4 and 3-5 overlap; end one where the other begins"),
        (["3-5: z", "0-4: y"], "spans 0-4 and 3-5 overlap"),
        (["4-4: y"], "'4-4: y' is not a part with its prompt"),
        (["0-4 y"], "write its first and last second"),
        (["1.2.3-4: y"], "is not a part with its prompt"),
    ],
)
def test_wrong_spans_are_refused(spans: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sample_settings(seconds=9, spans=spans)


def test_spans_are_read_in_the_sequence_of_time() -> None:
    assert parse_span(" 1.5 - 4 :  A star: it spins. ") == PromptSpan(1.5, 4.0, "A star: it spins.")
    settings = sample_settings(seconds=9, spans=["5-6: z", "0-4: y"])
    assert [span.start for span in settings.prompt_spans()] == [0, 5]


@pytest.mark.parametrize("key", ["prompt", "negative", "source_prompt"])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a\0b", "control character U\\+0000 at position 1; remove it"),
        ("word " * 10_000, "50000 characters, in 10000 words; .*shorten it"),
    ],
)
def test_prompts_that_are_no_text_are_refused(key: str, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sample_settings(**{key: text})


def test_tasks_are_part_of_the_file_name() -> None:
    names = {sample_settings(video="a.mp4", extend=direction).file_name() for direction in ("forward", "backward")}
    assert len(names) == 2
    assert sample_settings(loop=True).stem().startswith("x-96x64-seed0-loop-")
