"""Peak memory of decoding and writing a sample, by its length.

    python -m benchmarks.sample_memory [--seconds 10 60 600] [--size 64x48] [--fps 8] [--autoencoder causal] [--whole]

The latents are random. `peak_mib` is the highest memory of the process, torch and the autoencoder included. `--whole`
decodes the whole sample before it is written, for comparison. Prints a line per length, and last one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import torch

from benchmarks.measuring import peak_memory_mb, reset_peak_memory, wall_s
from cluster.plugins import build
from training.autoencoder import FOLDER, Autoencoder, AutoencoderSettings
from training.sampling.coding import decode_frames, decode_video
from training.sampling.media import write_mp4
from training.sampling.shape import n_frames


def measure(autoencoder: Autoencoder, arguments: argparse.Namespace, seconds: float) -> dict[str, float]:
    """Return the peak memory, the seconds taken, and the sizes of file and latents of one sample."""
    width, height = map(int, arguments.size.split("x"))
    frames = n_frames(seconds, arguments.fps, autoencoder.time_factor)
    reset_peak_memory()
    shape = autoencoder.latent_shape(frames, height, width)
    latent_BCTHW = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
    decode = decode_video if arguments.whole else decode_frames
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "sample.mp4")
        took_s = wall_s(lambda: write_mp4(str(path), decode(autoencoder, latent_BCTHW), arguments.fps))
        file_mib = path.stat().st_size / 2**20
    found = {"seconds": seconds, "frames": frames, "peak_mib": peak_memory_mb(), "took_s": took_s, "file_mib": file_mib}
    found["latent_mib"] = latent_BCTHW.nbytes / 2**20
    return {name: round(value, 2) for name, value in found.items()}


def main(arguments: argparse.Namespace) -> None:
    """Measure all lengths, after a short sample that loads what every sample needs."""
    settings = build(FOLDER, AutoencoderSettings, arguments.autoencoder)
    autoencoder = settings.open()
    measure(autoencoder, arguments, 1.0)
    rows = []
    for seconds in arguments.seconds:
        rows.append(measure(autoencoder, arguments, seconds))
        print(rows[-1], flush=True)
    named = {name: getattr(arguments, name) for name in ("size", "fps", "autoencoder", "whole")}
    print(json.dumps({"benchmark": "sample_memory", **named, "samples": rows}))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, nargs="+", default=[10, 60, 600])
    parser.add_argument("--size", default="64x48")
    parser.add_argument("--fps", type=float, default=8.0)
    parser.add_argument("--autoencoder", default="causal")
    parser.add_argument("--whole", action="store_true")
    main(parser.parse_args())
