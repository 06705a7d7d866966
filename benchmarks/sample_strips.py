"""The picture of the first clips of an evaluation: frames of real held-out clips beside frames generated from their
captions.

    python -m benchmarks.sample_strips EVALUATION FOOTAGE --image FILE [--clips 6]

EVALUATION is the folder of a model's evaluation, `out/evaluation/<weights>`, and FOOTAGE the drawn footage that it
measured. The clips are the first ones of the footage, none is chosen. Prints one line of JSON last: the prompts.
"""

from __future__ import annotations

import argparse
import itertools
import json
import textwrap
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from cluster import storage
from cluster.arrays import Pixels
from pipelines.commands._media import read_frames
from pipelines.scenes.clips import read_clip
from pipelines.video.spans import FrameGrid
from training.evaluation.truth import read_truth

FRAMES = 5
"""Frames that are shown of each clip, evenly spaced."""
SCALE = 2
GAP = 16
FONT, LINE = 18, 24
"""Height of letters and of a line of text in pixels."""


def strip(frames_THWC: Pixels) -> Image.Image:
    """Return frames of a clip, enlarged and next to each other."""
    shown = frames_THWC[np.linspace(0, len(frames_THWC) - 1, FRAMES).round().astype(int)]
    padded = np.pad(shown, ((0, 0), (0, 0), (0, 2), (0, 0)), constant_values=255)
    _, height, width, _ = padded.shape
    image = Image.fromarray(padded.transpose(1, 0, 2, 3).reshape(height, FRAMES * width, 3))
    return image.resize((image.width * SCALE, image.height * SCALE), Image.Resampling.LANCZOS)


def picture(rows: list[tuple[str, Image.Image, Image.Image]]) -> Image.Image:
    """Return an image with a row per prompt: the strip of the real clip on the left, the generated one on the right."""
    column = max(image.width for _, *pair in rows for image in pair)
    font = ImageFont.load_default(FONT)
    texts = [textwrap.wrap(prompt, 2 * column // (FONT // 2)) for prompt, _, _ in rows]
    heights = [LINE * len(text) + real.height + GAP for text, (_, real, _) in zip(texts, rows, strict=True)]
    sheet = Image.new("RGB", (2 * column + 3 * GAP, LINE + 2 * GAP + sum(heights)), "white")
    draw = ImageDraw.Draw(sheet)
    lefts = (GAP, column + 2 * GAP)
    for left, heading in zip(lefts, ("held-out footage", "generated from its caption"), strict=True):
        draw.text((left, GAP // 2), heading, "dimgrey", font)
    tops = itertools.accumulate([LINE + GAP, *heights])
    for top, text, (_, *pair) in zip(tops, texts, rows, strict=False):
        draw.text((GAP, top), "\n".join(text), "black", font, spacing=LINE - FONT)
        for left, image in zip(lefts, pair, strict=True):
            sheet.paste(image, (left, top + LINE * len(text)))
    return sheet


def main() -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("evaluation", type=Path)
    parser.add_argument("footage")
    parser.add_argument("--image", type=Path, required=True)
    parser.add_argument("--clips", type=int, default=6)
    arguments = parser.parse_args()
    files = {Path(file.file).stem: file for file in read_truth(arguments.footage)[1]}
    rows = []
    for record in sorted((arguments.evaluation / "generated").glob("*.json"))[: arguments.clips]:
        data = json.loads(record.read_text())
        video = str(arguments.evaluation / data["video"])
        with av.open(video) as container:
            fps = float(container.streams.video[0].average_rate or 0)
        generated_THWC = read_frames(video)
        n_frames, height, width, _ = generated_THWC.shape
        file = files[data["name"]]
        grid = FrameGrid(fps, n_frames, width, height)
        real = read_clip(storage.absolute(arguments.footage), file, file.shots[0], grid)
        rows.append((data["prompt"], strip(real.frames_THWC), strip(generated_THWC)))
    picture(rows).quantize(256, dither=Image.Dither.NONE).save(arguments.image, optimize=True)
    print(json.dumps({"prompts": [prompt for prompt, _, _ in rows]}))


if __name__ == "__main__":
    main()
