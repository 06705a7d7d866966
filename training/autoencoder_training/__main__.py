"""Train the autoencoder `causal` on a folder of clips, in this process.

Example: `python -m training.autoencoder_training DATA OUT --minutes 9`.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path

from cluster.config import override, parse, parse_document, read_document
from cluster.telemetry import configure_logging
from training.autoencoder_training.loop import run_folder, train_autoencoder
from training.autoencoder_training.settings import AutoencoderTrainSettings
from training.device import default_device


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, then print the URI of the weights and the report as JSON."""
    parser = argparse.ArgumentParser(
        description="Train the autoencoder 'causal' on clips: DATA/train/*.npy and DATA/val/*.npy, uint8 [T, H, W, 3]."
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("out", help="Folder of runs; the same command resumes from the newest checkpoint there.")
    parser.add_argument(
        "--settings", type=Path, help="YAML file of training settings, like the train section of the recipe."
    )
    parser.add_argument(
        "--set",
        dest="assignments",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="Override a setting. Repeatable.",
    )
    parser.add_argument(
        "--minutes",
        type=float,
        default=math.inf,
        help="Stop after about this many minutes, with a checkpoint and usable weights.",
    )
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    configure_logging()
    document = read_document(options.settings) if options.settings else parse_document("{}", "--set")
    settings = parse(AutoencoderTrainSettings, override(document, options.assignments))
    run_uri = run_folder(settings, options.data, options.out, options.seed)
    done = train_autoencoder(settings, options.data, run_uri, options.seed, default_device(), 60 * options.minutes)
    print(done.weights_uri)
    print(json.dumps(done.report))


if __name__ == "__main__":
    main()
