"""The picture of the first clips of an evaluation: frames of real held-out clips beside frames generated from their
captions.

    python -m benchmarks.sample_strips EVALUATION FOOTAGE --image FILE [--clips 6]

EVALUATION is the folder of a model's evaluation, `out/evaluation/<weights>`, and FOOTAGE the drawn footage that it
measured. The clips are the first ones of the footage, none is chosen. Prints one line of JSON last: the prompts.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import av
from PIL import Image

from cluster import storage
from pipelines.commands._media import read_frames
from pipelines.commands._sample_sheet import sample_sheet
from pipelines.scenes.clips import read_clip
from pipelines.video.spans import FrameGrid
from training.evaluation.truth import read_truth

FRAMES = 5
"""Frames that are shown of each clip, evenly spaced."""


def main() -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("evaluation", type=Path)
    parser.add_argument("footage")
    parser.add_argument("--image", type=Path, required=True)
    parser.add_argument("--clips", type=int, default=6)
    arguments = parser.parse_args()
    files = {Path(file.file).stem: file for file in read_truth(arguments.footage)[1]}
    prompts, real, generated = [], [], []
    for record in sorted((arguments.evaluation / "generated").glob("*.json"))[: arguments.clips]:
        data = json.loads(record.read_text())
        video = str(arguments.evaluation / data["video"])
        with av.open(video) as container:
            fps = float(container.streams.video[0].average_rate or 0)
        generated.append(read_frames(video))
        n_frames, height, width, _ = generated[-1].shape
        file = files[data["name"]]
        grid = FrameGrid(fps, n_frames, width, height)
        real.append(read_clip(storage.absolute(arguments.footage), file, file.shots[0], grid).frames_THWC)
        prompts.append(data["prompt"])
    clips = {"held-out footage": real, "generated from its caption": generated}
    sheet = Image.fromarray(sample_sheet(prompts, clips, FRAMES))
    sheet.quantize(256, dither=Image.Dither.NONE).save(arguments.image, optimize=True)
    print(json.dumps({"prompts": prompts}))


if __name__ == "__main__":
    main()
