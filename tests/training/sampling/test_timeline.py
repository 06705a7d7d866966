"""Timelines: what is given, what is generated, and what no timeline can hold."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from training.sampling.timeline import (
    Prompt,
    Timeline,
    backward_extension,
    blank,
    connection,
    forward_extension,
    prompts_between,
)

PROMPT = Prompt(torch.ones(2, 8))


def empty(n_frames: int = 6) -> Timeline:
    return blank((4, n_frames, 2, 3), [PROMPT], (48, 32), 8.0)


def latents(n_frames: int) -> Tensor:
    return torch.arange(1.0, n_frames + 1)[None, :, None, None].expand(4, n_frames, 2, 3)


def values(timeline: Timeline) -> list[float]:
    """Return one value for each latent frame."""
    return timeline.latent_CTHW[0, :, 0, 0].tolist()


def test_given_frames_count_from_either_end() -> None:
    timeline = empty().given(1, latents(2), level=0.1).given(-1, latents(1))
    assert timeline.levels == (None, 0.1, 0.1, None, None, 0.0)
    assert values(timeline) == [0, 1, 2, 0, 0, 1]
    assert empty().levels == (None,) * 6, "a timeline never changes"
    assert timeline.grid == (6, 2, 3)


def test_an_image_at_the_end_is_one_more_frame() -> None:
    timeline = empty().ending_with(latents(1))
    assert timeline.frame_levels() == (None,) * 6 + (0.0,)
    assert timeline.frames().shape == (4, 7, 2, 3)
    assert timeline.ending_with(None).frames().shape == (4, 6, 2, 3)


def test_extensions_and_connections_fill_their_ends() -> None:
    forward = forward_extension(empty(), latents(3), 0.1)
    assert forward.levels == (0.1, 0.1, 0.1, None, None, None)
    assert values(forward) == [1, 2, 3, 0, 0, 0]
    # The latent of a first frame alone has no place within a video.
    backward = backward_extension(empty(), latents(3))
    assert backward.levels == (None, None, None, None, 0.0, 0.0)
    assert values(backward) == [0, 0, 0, 0, 2, 3]
    both = connection(empty(), latents(2), latents(3))
    assert both.levels == (0.0, 0.0, None, None, 0.0, 0.0)
    assert values(both) == [1, 2, 0, 0, 2, 3]


@pytest.mark.parametrize(
    ("start", "stop", "starts"), [(0, 6, [0, 2, 4]), (0, 2, [0]), (1, 5, [0, 1, 3]), (2, 4, [0]), (5, 6, [0])]
)
def test_prompts_of_a_part_begin_with_the_part(start: int, stop: int, starts: list[int]) -> None:
    prompts = [Prompt(torch.full((1, 8), float(begin)), begin) for begin in (0, 2, 4)]
    found = prompts_between(prompts, start, stop)
    assert [prompt.start for prompt in found] == starts
    assert found[0].text_NE[0, 0] == start // 2 * 2


def test_impossible_timelines_are_refused() -> None:
    with pytest.raises(ValueError, match="all 6 latent frames are given, so nothing is left"):
        empty().given(0, latents(6))
    with pytest.raises(ValueError, match="3 given latent frames from 4 on do not lie in a timeline of 6"):
        empty().given(4, latents(3))
    with pytest.raises(ValueError, match=r"given latent frames have the shape \(4, 2, 2\)"):
        empty().given(0, torch.zeros(4, 1, 2, 2))
    with pytest.raises(ValueError, match=r"noise levels of given frames must lie in \[0, 1\)"):
        empty().given(0, latents(1), level=1.0)
    with pytest.raises(ValueError, match="latent frames 2 to 5 overlap with frames that are given already"):
        connection(empty(), latents(3), latents(5))
    with pytest.raises(ValueError, match="an image cannot be extended backward"):
        backward_extension(empty(), latents(1))
    with pytest.raises(ValueError, match="5 noise levels for 6 latent frames"):
        replace(empty(), levels=(None,) * 5)
    with pytest.raises(ValueError, match="the last-frame latent has the shape"):
        empty().ending_with(latents(2))
    with pytest.raises(ValueError, match="5 blends for 6 latent frames"):
        replace(empty(), blends=(0.0,) * 5)
    with pytest.raises(ValueError, match=r"blends must lie in \[0, 1\)"):
        replace(empty(), blends=(1.0,) * 6)
    with pytest.raises(ValueError, match="a loop with an overlap of 3 needs at least 7 latent frames; got 6"):
        replace(empty(), loop_overlap=3)
    with pytest.raises(ValueError, match=r"strength 1\.5 must be above 0 and at most 1"):
        replace(empty(), strength=1.5)


@pytest.mark.parametrize("starts", [[], [1], [0, 0], [0, 3, 2], [0, 6]])
def test_prompts_that_do_not_follow_each_other_are_refused(starts: list[int]) -> None:
    with pytest.raises(ValueError, match=r"prompts begin at latent frames .* must begin at 0, rise, and lie below 6"):
        replace(empty(), prompts=tuple(Prompt(PROMPT.text_NE, start) for start in starts))
