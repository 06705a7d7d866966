"""Count the requests to an object store that training and commands make, and the seconds they take.

    python -m benchmarks.requests [--shards 1000 100000] [--ranks 1 64] [--clips 2000] [--latency-ms 30]

The store is a stand-in (`slow_store.py`), whose every request takes `--latency-ms`. A data set of `--shards` shards is
opened by `--ranks` ranks, 8 to a machine: the training and the validation split. Its manifest and index are real, of
ten rows a shard with a caption each; of the shards only their layouts are. Then commands look at a complete curation of
`--clips` clips (`synthetic.py`), with as many shards beside its tables. Prints one line of JSON last: requests of the
rank that makes most and of all ranks, seconds of the slowest, and by command.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import json
import sys
import tempfile
import time
from array import array
from pathlib import Path
from typing import Any
from unittest import mock

import pyarrow as pa

from benchmarks.slow_store import SlowStore
from benchmarks.synthetic import write_run
from captioning.encoder import NULL_CAPTION, text_key
from captioning.encoders.hashing import Hashing
from pipelines import cli
from training.autoencoders.linear import Linear
from training.data import index_writer
from training.data.buckets import Bucket
from training.data.dataset import Dataset
from training.data.layout import Layout
from training.data.manifest import CONTENT_COLUMNS, MANIFEST_SCHEMA, DatasetInfo
from training.data.manifest_writer import write_manifest
from training.data.shard_footer import ShardFooter
from training.data.shards import CROP_COLUMNS, ShardInfo
from training.data.text_tables import write_text_table

ROWS_PER_SHARD = 10
RANKS_PER_MACHINE = 8
N_CAPTIONS = 2000
CAPTION = "A brown dog runs along the beach at dusk, and the camera follows it from behind until it is gone. No. {}."
BUCKET = Bucket(256, 144, 17, 8.0)


def write_data_set(root: Path, n_shards: int) -> str:
    """Write manifest, index and text tables of a data set below a folder; return the manifest's path."""
    autoencoder, encoder = Linear(), Hashing(dim=16)
    opened, embedder = autoencoder.open(), encoder.open()
    keys = [text_key(caption, embedder.identity) for caption in map(CAPTION.format, range(N_CAPTIONS))]
    null_key = text_key(NULL_CAPTION, embedder.identity)
    embedding = embedder.encode([CAPTION])[0]
    for start in range(0, N_CAPTIONS, 500):
        texts = dict.fromkeys([null_key, *keys[start : start + 500]], embedding)
        write_text_table(str(root / f"texts/part-{start}.parquet"), texts, embedder.identity)
    info = ShardInfo.from_autoencoder(autoencoder, opened, BUCKET, "benchmark")
    widths = {"latent": info.latent_bytes, "last_frame_latent": info.last_frame_bytes}
    starts = {"latent": array("q", [4]), "last_frame_latent": array("q", [4 + ROWS_PER_SHARD * info.latent_bytes])}
    layout = Layout(ROWS_PER_SHARD * sum(widths.values()) + 4, widths, array("q", [ROWS_PER_SHARD]), starts)
    described = DatasetInfo.from_encoders(autoencoder, opened, encoder, "texts", "benchmark")
    uri = str(root / "manifest-0/_manifest.parquet")
    with mock.patch.object(index_writer, "read_shard_footer", return_value=ShardFooter(info, layout, 0)):
        write_manifest(uri, _rows(n_shards, keys, embedder.identity), described)
    return uri


def _rows(n_shards: int, keys: list[str], identity: str) -> pa.Table:
    n = n_shards * ROWS_PER_SHARD
    numbers = range(n)
    columns: dict[str, Any] = {
        "uid": [f"{number:020x}" for number in numbers],
        "bucket": [BUCKET.name] * n,
        "kind": ["video"] * n,
        "file": [f"latents-0/bucket={BUCKET.name}/part-{number // ROWS_PER_SHARD:020x}.parquet" for number in numbers],
        "row": [number % ROWS_PER_SHARD for number in numbers],
        "text_key": [keys[number % N_CAPTIONS] for number in numbers],
        "caption": [CAPTION.format(number % N_CAPTIONS) for number in numbers],
        "caption_kind": ["dense"] * n,
        "other_captions": [[]] * n,
        "source": [f"s3://footage/{number // 30:08d}.mp4" for number in numbers],
        "fps": [8.0] * n,
        "cluster": [None] * n,
        "split": ["val" if number % 100 == 0 else "train" for number in numbers],
    }
    boxes = dict(zip((*CROP_COLUMNS, *CONTENT_COLUMNS), (0, 0, 256, 144) * 2, strict=True))
    constant = {"n_tokens": 18 * 32 * 5, "n_text": 22, "time_base_den": 24, "end_pts": 50, **boxes}
    arrays = [
        pa.array(columns[field.name] if field.name in columns else [constant.get(field.name, 1)] * n, field.type)
        if field.name != "row_group"
        else pa.array([0] * n, field.type)
        for field in MANIFEST_SCHEMA
    ]
    return pa.table(arrays, MANIFEST_SCHEMA)


def open_as_ranks(store: SlowStore, manifest_uri: str, n_ranks: int) -> dict[str, float]:
    """Return the requests and seconds of ranks that open a data set, one after the other."""
    seconds, requests = [], []
    for first in range(0, n_ranks, RANKS_PER_MACHINE):
        with tempfile.TemporaryDirectory() as machine, mock.patch.object(tempfile, "tempdir", machine):
            for _ in range(min(RANKS_PER_MACHINE, n_ranks - first)):
                store.requests.clear()
                start_s = time.perf_counter()
                for split in ("train", "val"):
                    Dataset.open(manifest_uri, split)
                seconds.append(time.perf_counter() - start_s)
                requests.append(store.requests.total())
    return {
        "requests_a_rank": max(requests),
        "requests": sum(requests),
        "seconds_a_rank": round(max(seconds), 2),
    }


def run_commands(store: SlowStore, root: Path, n_clips: int, n_shards: int) -> dict[str, dict[str, float]]:
    """Return the requests and seconds of each command on a complete curation in the store.

    Beside its tables are `n_shards` files that are no shards, so that a command that opens one fails.
    """
    recipe = write_run(root / "bucket", n_clips)
    folder = root / "bucket/out/tables/latents-0"
    for number in range(n_shards):
        path = folder / f"bucket={number % 10}/part-{number:06d}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    remote = recipe.with_name("remote.yaml")
    text = recipe.read_text()
    remote.write_text(text.replace(json.dumps(str(recipe.parent / "out")), "s3://bucket/out"))
    found = {}
    commands = {
        "curate": ("curate", "--inline"),
        "plan": ("plan",),
        "ledger": ("ledger",),
        "report": ("report",),
        "whatif": ("whatif", "--no-curves", "--set", "curate.keep.motion.min=0.02"),
    }
    for name, (command, *options) in commands.items():
        store.requests.clear()
        start_s = time.perf_counter()
        _run(command, str(remote), *options)
        seconds = round(time.perf_counter() - start_s, 2)
        found[name] = {"requests": store.requests.total(), "seconds": seconds, **dict(store.requests)}
        print(name, found[name])
    return found


def _run(*arguments: str) -> None:
    printed = io.StringIO()
    with (
        mock.patch.object(sys, "argv", ["worldloom", *arguments]),
        contextlib.redirect_stdout(printed),
    ):
        try:
            cli.main()
        except SystemExit as ended:
            if ended.code:
                raise RuntimeError(f"worldloom {' '.join(arguments)} ended with {ended.code}") from ended


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, nargs="*", default=[1000, 100_000])
    parser.add_argument("--ranks", type=int, nargs="*", default=[1, 64])
    parser.add_argument("--clips", type=int, nargs="*", default=[2000])
    parser.add_argument("--latency-ms", type=float, default=30.0)
    arguments = parser.parse_args()
    result: dict[str, Any] = {"latency_ms": arguments.latency_ms, "open": [], "commands": []}
    for n_shards in arguments.shards:
        with tempfile.TemporaryDirectory() as folder:
            write_data_set(Path(folder, "bucket"), n_shards)
            index_mb = round(Path(folder, "bucket/manifest-0/_manifest.index.arrow").stat().st_size / 1e6, 1)
            store = SlowStore(Path(folder), arguments.latency_ms / 1000)
            with store.mounted():
                for n_ranks in arguments.ranks:
                    opened = open_as_ranks(store, "s3://bucket/manifest-0/_manifest.parquet", n_ranks)
                    result["open"].append({"shards": n_shards, "ranks": n_ranks, "index_mb": index_mb, **opened})
                    print(result["open"][-1])
    for n_clips, n_shards in itertools.product(arguments.clips, arguments.shards):
        with tempfile.TemporaryDirectory() as folder:
            store = SlowStore(Path(folder), arguments.latency_ms / 1000)
            with store.mounted():
                found = run_commands(store, Path(folder), n_clips, n_shards)
            result["commands"].append({"clips": n_clips, "shards": n_shards, **found})
    print(json.dumps(result))


if __name__ == "__main__":
    main()
