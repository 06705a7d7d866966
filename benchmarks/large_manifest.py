"""Measure the end of curation, and the start of training, on many captions: seconds and memory.

    python -m benchmarks.large_manifest [--clips 1000000] [--caption-bytes 200] [--captions 1000000] [--repeats 1]

`--clips` clips, each with one sample in a shard of 1,000 and one of `--captions` texts of `--caption-bytes`, become a
manifest with its index, as at curation's end. Shards and text tables are not there: their layouts are made up. Then
another process opens the training split and plans its first steps, as a rank does; it reads the captions of 1,000
random rows. With `--repeats`, the index that it opens holds all rows that often. Prints one line of JSON last.
`rank_private_mb` is memory of that rank alone; `rank_shared_mb` is that of
the index, which ranks of a machine share.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import tempfile
import time
from array import array
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from benchmarks.measuring import peak_memory_mb
from captioning.encoders.hashing import Hashing
from cluster.part_index import PartRows
from pipelines.dataset.build import join_samples, manifest_pieces
from pipelines.dataset.captions import Captions
from training.autoencoders.linear import Linear
from training.data import index, index_writer
from training.data.buckets import Bucket
from training.data.dataset import Dataset
from training.data.footer import metadata, parse_metadata
from training.data.index_writer import write_index
from training.data.layout import Layout
from training.data.manifest import DatasetInfo, read_info
from training.data.manifest_writer import write_manifest_pieces
from training.data.plan import Planner, PlanSettings
from training.data.shard_footer import ShardFooter
from training.data.shards import CROP_COLUMNS, ShardInfo
from training.data.text_index import SCHEMA as TEXT_SCHEMA
from training.data.text_index import TextIndex
from training.data.text_tables import TextEncoding

ROWS_PER_SHARD = 1000
ROWS_PER_PIECE = 1 << 17
BUCKET = Bucket(256, 144, 17, 8.0)


def numbered(start: int, count: int, modulo: int, form: str) -> pa.Array:
    """Return `form % (number % modulo)` of numbers from `start` on."""
    return pa.array([form % (number % modulo) for number in range(start, start + count)])


def clips_of(n: int, n_captions: int, caption_bytes: int) -> pa.Table:
    """Return the kept clips as `kept_clips` and `with_splits` give them."""
    pieces = []
    form = f"%08d {'a dog runs along the beach ' * caption_bytes}"[: caption_bytes + 1]
    for start in range(0, n, ROWS_PER_PIECE):
        count = min(ROWS_PER_PIECE, n - start)
        text = numbered(start, count, n_captions, form)
        captions = pa.StructArray.from_arrays([pa.repeat("dense", count), text], names=["kind", "text"])
        numbers = ("clip_start_pts", "clip_end_pts", "time_base_num", "time_base_den", "source_width", "source_height")
        pieces.append(
            pa.table(
                {
                    "uid": numbered(start, count, n, "%020x"),
                    "kind": pa.repeat("video", count),
                    "captions": pa.ListArray.from_arrays(pa.array(range(count + 1), pa.int32()), captions),
                    "source": numbered(start, count, n, "s3://footage/%012d.mp4"),
                    **{name: pa.repeat(pa.scalar(1), count) for name in numbers},
                    "crop": pa.nulls(count, pa.list_(pa.int32())),
                    "split": pa.array(["val" if number % 100 == 0 else "train" for number in range(count)]),
                    "cluster": pa.nulls(count, pa.string()),
                }
            )
        )
    return pa.concat_tables(pieces)


def same(value: str, count: int) -> pa.DictionaryArray:
    """Return a string that many times."""
    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(count, np.int32)), pa.array([value]))


def samples_of(n: int) -> pa.Table:
    """Return a sample of each clip, as `shard_rows` does."""
    numbers = ("checksum", "start_pts", "end_pts", *CROP_COLUMNS)

    def rows_of_shard(start: int) -> pa.Table:
        count = min(ROWS_PER_SHARD, n - start)
        columns = {
            "uid": numbered(start, count, n, "%020x"),
            "n_tokens": pa.repeat(pa.scalar(18 * 32 * 5), count),
            "row_group": pa.repeat(pa.scalar(0), count),
            "row": pa.array(range(count)),
            "fps": pa.repeat(8.0, count),
            **{name: pa.repeat(pa.scalar(1), count) for name in numbers},
            "file": same(f"latents/bucket={BUCKET.name}/part-{start // ROWS_PER_SHARD:012d}.parquet", count),
            "bucket": same(BUCKET.name, count),
        }
        return pa.table(columns)

    return join_samples(map(rows_of_shard, range(0, n, ROWS_PER_SHARD)))


def text_index(uri: str, n_captions: int) -> TextIndex:
    """Return the index of text tables with the texts of a manifest that `write` writes, 4,096 in each."""
    main = pq.read_table(uri, columns=["text_key"])["text_key"].slice(0, n_captions)
    keys = pa.chunked_array([*main.chunks, [read_info(uri).null_text_key]])
    places = {name: pa.repeat(pa.scalar(1), len(keys)) for name in ("n", "checksum", "row_group", "row", "encoding")}
    uris = pa.array([f"texts/part-{number:08d}.parquet" for number in range(len(keys) // 4096 + 1)])
    parts = pa.DictionaryArray.from_arrays(pa.array(np.arange(len(keys), dtype=np.int32) // 4096), uris)
    rows = pa.table({"key": keys, "truncated": pa.repeat(False, len(keys)), "part": parts, **places})
    return TextIndex("texts", PartRows(rows.select(TEXT_SCHEMA.names), (), True))


def write(uri: str, n: int, n_captions: int, caption_bytes: int) -> dict[str, float]:
    """Write the manifest and the index; return seconds and memory."""
    autoencoder, encoder = Linear(), Hashing(dim=16)
    opened, identity = autoencoder.open(), encoder.identity()
    clips = clips_of(n, n_captions, caption_bytes)
    captions = Captions.of_clips(clips["captions"], identity)
    assert len(captions.missing(pa.chunked_array([], pa.string()))) == min(n, n_captions) + 1
    key_N, n_text_N = captions.key_N, pa.chunked_array([pa.repeat(pa.scalar(30), len(captions.key_N))])
    del captions
    samples = samples_of(n)
    info = ShardInfo.from_autoencoder(autoencoder, opened, BUCKET, "benchmark")
    widths = {"latent": info.latent_bytes, "last_frame_latent": info.last_frame_bytes}
    layout = Layout(0, widths, array("q", [ROWS_PER_SHARD]), {name: array("q", [4]) for name in widths})
    described = DatasetInfo.from_encoders(autoencoder, opened, encoder, "texts", "benchmark")
    caption_gb = pc.sum(pc.binary_length(pc.struct_field(pc.list_flatten(clips["captions"]), "text"))).as_py() / 1e9
    inputs_mb = peak_memory_mb()
    start_s = time.perf_counter()
    with (
        mock.patch.object(index_writer, "read_shard_footer", return_value=ShardFooter(info, layout, 0)),
        mock.patch.object(index_writer, "read_text_index", side_effect=lambda folder: text_index(uri, n_captions)),
        mock.patch.object(TextIndex, "encoding", return_value=TextEncoding(identity, 16, 0)),
    ):
        write_manifest_pieces(uri, manifest_pieces(clips, samples, key_N, n_text_N), described)
        del clips, samples, key_N, n_text_N
        write_index(uri)
    return {
        "caption_gb": round(caption_gb, 2),
        "write_seconds": round(time.perf_counter() - start_s, 1),
        "inputs_peak_mb": round(inputs_mb),
        "driver_peak_mb": round(peak_memory_mb()),
    }


def repeat_index(uri: str, repeats: int) -> None:
    """Write the index of a manifest again with all its rows several times, batch by batch."""
    path = Path(index.index_uri(uri))
    longer = path.with_suffix(".longer")
    with pa.memory_map(str(path)) as source, pa.ipc.open_file(source) as reader:
        batches = iter([reader.get_batch(number) for number in range(reader.num_record_batches)])
        about = parse_metadata(reader.schema, "index", str(path))
        counts = about["n_batches"]
        of_split = [[next(batches) for _ in range(counts[split])] * repeats for split in index.SPLITS]
        about["n_batches"] = {split: count * repeats for split, count in counts.items()}
        schema = reader.schema.with_metadata(metadata("index", about))
        with pa.ipc.new_file(str(longer), schema) as writer:
            for batch in itertools.chain(*of_split):
                writer.write_batch(batch.replace_schema_metadata(schema.metadata))
    longer.rename(path)


def memory_mb() -> tuple[float, float]:
    """Return the private and the file-backed resident memory of this process in MiB."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines["RssAnon"].split()[0]) / 1024, int(lines["RssFile"].split()[0]) / 1024


def start_rank(uri: str) -> dict[str, float]:
    """Open the data set and plan as a rank does; return seconds and memory."""
    before, start_s = memory_mb(), time.perf_counter()
    dataset = Dataset.open(uri, "train")
    opened_s = time.perf_counter() - start_s
    planner = Planner(dataset.table["bucket"], dataset.table["n_tokens"], PlanSettings(tokens_per_step=1_000_000), 0)
    planner.step(0)
    planned_s = time.perf_counter() - start_s
    private, _ = (after - other for after, other in zip(memory_mb(), before, strict=True))
    rows = np.random.default_rng(0).integers(0, len(dataset), 1000)
    start_s = time.perf_counter()
    for row in rows.tolist():
        dataset.row(row)
    return {
        "open_seconds": round(opened_s, 2),
        "first_step_seconds": round(planned_s, 2),
        "rank_private_mb": round(private),
        "rank_peak_mb": round(peak_memory_mb()),
        "rank_shared_mb": round(memory_mb()[1] - before[1]),
        "row_us": round((time.perf_counter() - start_s) * 1000),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=1_000_000)
    parser.add_argument("--caption-bytes", type=int, default=200)
    parser.add_argument("--captions", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        uri = str(Path(folder, "manifest-0/_manifest.parquet"))
        result = vars(arguments) | write(uri, arguments.clips, arguments.captions, arguments.caption_bytes)
        if arguments.repeats > 1:
            repeat_index(uri, arguments.repeats)
        sizes = {path.suffix[1:]: path.stat().st_size for path in Path(uri).parent.iterdir()}
        result |= {f"{name}_mb": round(size / 1e6) for name, size in sizes.items()}
        print(result)
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            result |= pool.submit(start_rank, uri).result()
    print(json.dumps(result))


if __name__ == "__main__":
    main()
