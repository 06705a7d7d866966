"""A sheet of clips side by side: a row per prompt, a column per model or source."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from cluster.arrays import Pixels

SCALE = 2
GAP = 12
FONT, LINE = 15, 21
"""Height of letters and of a line of text in pixels."""
BACKGROUND, INK = (255, 255, 255), (25, 25, 25)


def sample_sheet(prompts: Sequence[str], clips: Mapping[str, Sequence[Pixels]], n_frames: int = 3) -> Pixels:
    """Return an image `[H, W, 3]` with a row per prompt, and a column per key of `clips`, which is its heading.

    Each column has the frames `[T, H, W, 3]` of one clip per prompt, in their order. Of a clip `n_frames` evenly spaced
    ones are shown, the first and the last among them; an image has one.
    """
    strips = {heading: [_strip(frames, n_frames) for frames in of_column] for heading, of_column in clips.items()}
    column = max(strip.shape[1] for of_column in strips.values() for strip in of_column)
    heights = [max(strip.shape[0] for strip in row) for row in zip(*strips.values(), strict=True)]
    width = GAP + len(strips) * (column + GAP)
    wrapped = [textwrap.wrap(prompt, max(20, (width - 2 * GAP) // (FONT // 2))) for prompt in prompts]
    height = 2 * GAP + LINE + sum(LINE * len(lines) + tall + GAP for lines, tall in zip(wrapped, heights, strict=True))
    sheet = Image.new("RGB", (width, height), BACKGROUND)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(FONT)
    for index, heading in enumerate(strips):
        draw.text((GAP + index * (column + GAP), GAP // 2), heading, INK, font)
    y = GAP + LINE
    for row, (lines, tall) in enumerate(zip(wrapped, heights, strict=True)):
        for line in lines:
            draw.text((GAP, y), line, INK, font)
            y += LINE
        for index, of_column in enumerate(strips.values()):
            sheet.paste(Image.fromarray(of_column[row]), (GAP + index * (column + GAP), y))
        y += tall + GAP
    return np.asarray(sheet)


def _strip(frames_THWC: Pixels, n_frames: int) -> Pixels:
    """Return frames of a clip, enlarged and next to each other."""
    chosen = frames_THWC[np.linspace(0, len(frames_THWC) - 1, min(n_frames, len(frames_THWC))).round().astype(int)]
    padded = [np.pad(frame, ((0, 0), (0, 2), (0, 0)), constant_values=255) for frame in chosen]
    strip: Pixels = np.concatenate(padded, axis=1).repeat(SCALE, axis=0).repeat(SCALE, axis=1)
    return strip
