"""From a manifest to batches: one rank's samples of each step, read ahead and checked."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from cluster import storage
from training.data.captions import choose
from training.data.footer import DamagedError
from training.data.plan import MicroBatch, Planner, share
from training.data.shard_reader import READERS, ShardReader
from training.data.shards import DatasetInfo, read_manifest, tables_root
from training.data.texts import TextReader

# Shape suffixes: B samples, C latent channels, T H W latent frames, rows and columns.

Split = Literal["train", "val", "test"]

POLL_S = 0.1
"""How often a waiting thread looks whether it should stop."""


@dataclass(frozen=True)
class Sample:
    """One clip or image as it is stored, its checksum verified."""

    uid: str
    latent: Tensor
    """bfloat16 `[C, t, h, w]`."""
    tail_latent: Tensor | None
    """The last frame encoded as an image, bfloat16 `[C, 1, h, w]`; None for an image."""
    text: Tensor
    """Embedding of the caption, bfloat16 `[n, D]`."""
    caption: str
    fps: float
    kind: Literal["image", "video"]
    bucket: str


@dataclass(frozen=True)
class Batch:
    """A micro-batch: samples whose shapes may differ."""

    latents: list[Tensor]
    """float32 `[C, t, h, w]` each."""
    texts: list[Tensor]
    """Embedding of each caption, float32 `[n, D]`, unpadded."""
    uids: list[str]
    weights: Tensor
    """float32 `[B]`: 1 for a sample, 0 for a repeated one that counts for nothing; see `training.data.plan.MicroBatch`."""
    fps: Tensor
    """float32 `[B]`, frames a second."""
    sizes: list[tuple[int, int]]
    """Width and height of each sample in pixels."""
    epoch: int


@dataclass(frozen=True)
class CaptionDraw:
    """What decides which captions the samples of an epoch have; see `training.data.captions.choose`."""

    weights: Mapping[str, float]
    seed: int
    epoch: int

    def of(self, row: Mapping[str, Any]) -> Mapping[str, Any]:
        """`caption` and `text_key` of a manifest's row in this epoch."""
        kinds = [row["caption_kind"], *(other["kind"] for other in row["other_captions"])]
        number = choose(kinds, self.weights, self.seed, self.epoch, row["uid"])
        return row["other_captions"][number - 1] if number else row  # type: ignore[no-any-return]


class Dataset:
    """The samples of one split, by row number."""

    def __init__(self, table: pa.Table, info: DatasetInfo, shards: ShardReader, texts: TextReader) -> None:
        self.table, self.info = table, info
        self._shards, self._texts = shards, texts
        names = ["uid", "kind", "bucket", "file", "row_group", "row", "checksum", "fps"]
        self._rows = table.select([*names, "text_key", "caption", "caption_kind", "other_captions"])

    @classmethod
    def open(cls, manifest_uri: str, split: Split) -> Dataset:
        """Open a split; it may be empty.

        Raises `DamagedError` when a shard is missing, unreadable, or of another autoencoder or bucket than the manifest says,
        and when the text embeddings are of another encoder or one that is needed is missing.
        """
        table, info = read_manifest(manifest_uri)
        table = table.filter(pc.equal(table["split"], split)).combine_chunks()
        root = tables_root(manifest_uri, info)
        shards = ShardReader(root)
        files = table.group_by("file").aggregate([("bucket", "distinct")]).to_pylist()
        with ThreadPoolExecutor(READERS) as pool:
            list(pool.map(lambda row: _check_shard(shards, row["file"], row["bucket_distinct"], info), files))
        texts = TextReader(storage.join(root, info.text_folder))
        _check_texts(texts, table, info, manifest_uri)
        return cls(table, info, shards, texts)

    def __len__(self) -> int:
        return len(self.table)

    def null_text(self) -> Tensor:
        """Embedding of the null caption, bfloat16 `[n, D]`."""
        return self._texts.get(self.info.null_text_key)

    def sample(self, index: int, draw: CaptionDraw | None = None) -> Sample:
        """Row `index` of `table`, with its main caption or the one that is drawn.

        Raises `DamagedError` with file, row and uid when its bytes are not those that were written.
        """
        (row,) = self._rows.slice(index, 1).to_pylist()
        place = row["file"], row["row_group"], row["row"]
        said = draw.of(row) if draw else row
        try:
            latent, tail_latent, checksum = self._shards.read(*place)
            if checksum != row["checksum"]:
                raise DamagedError("the latent's bytes are not those that were written")
            text = self._texts.get(said["text_key"])
        except DamagedError as error:
            where = f"{row['file']}: row {row['row']} of row group {row['row_group']}, sample {row['uid']}"
            raise DamagedError(f"{where}: {error}. Run `worldloom verify`, remove the file and curate again") from error
        return Sample(row["uid"], latent, tail_latent, text, said["caption"], row["fps"], row["kind"], row["bucket"])


def _check_shard(shards: ShardReader, file: str, buckets: Sequence[str], info: DatasetInfo) -> None:
    shard = shards.info(file)
    if shard.autoencoder_identity != info.autoencoder_identity:
        raise DamagedError(
            f"{file}: its latents are by autoencoder {shard.autoencoder_identity}, those of the manifest by {info.autoencoder_identity}; "
            "latents of two autoencoders do not mix: curate again with one"
        )
    if list(buckets) != [shard.bucket.name]:
        raise DamagedError(f"{file}: holds bucket {shard.bucket.name}, and the manifest says {' and '.join(sorted(buckets))}; curate again")


def _check_texts(texts: TextReader, table: pa.Table, info: DatasetInfo, manifest_uri: str) -> None:
    others = pc.struct_field(pc.list_flatten(table["other_captions"]), "text_key")
    needed = {info.null_text_key, *pc.unique(table["text_key"]).to_pylist(), *pc.unique(others).to_pylist()}
    missing = sorted(key for key in needed if key not in texts)
    if missing:
        raise DamagedError(f"{manifest_uri}: {len(missing)} of {len(needed)} text embeddings are missing from {info.text_folder}, {missing[0]} first")
    if texts.identity != info.text_encoder_identity:
        raise DamagedError(f"{info.text_folder}: holds embeddings by {texts.identity}, and the manifest says {info.text_encoder_identity}")


class Loader:
    """Batches of one rank, step after step without an end, read ahead by a thread. A context manager; one iteration each.

    ```python
    with Loader(dataset, planner, rank, world_size, start_step) as loader:
        for step, batches in loader: ...
    ```
    """

    def __init__(
        self,
        dataset: Dataset,
        planner: Planner,
        rank: int = 0,
        world_size: int = 1,
        start_step: int = 0,
        prefetch: int = 2,
        captions: Mapping[str, float] | None = None,
        seed: int = 0,
    ) -> None:
        """`prefetch` is the number of steps that wait ready; `captions` are weights of kinds of captions, drawn by `seed`; None takes main ones."""
        if prefetch < 1:
            raise ValueError(f"prefetch {prefetch}: at least 1 step is read ahead")
        self._dataset, self._planner = dataset, planner
        self._rank, self._world_size, self._start_step = rank, world_size, start_step
        self._captions, self._seed = captions, seed
        self._ready: queue.Queue[tuple[int, list[Batch]] | BaseException] = queue.Queue(prefetch)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="loader", daemon=True)

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __iter__(self) -> Iterator[tuple[int, list[Batch]]]:
        """Yields (step, this rank's micro-batches). An error of the reading thread is raised here, at its step."""
        if self._stop.is_set():
            raise ValueError("this loader is closed; make another one, with the step to start at")
        if self._thread.ident is None:
            self._thread.start()
        while not self._stop.is_set():
            item = self._ready.get()
            if isinstance(item, BaseException):
                self.close()
                raise item
            yield item

    def close(self) -> None:
        """Stop reading and wait for the thread; what was read ahead is dropped. May be called twice."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        item: tuple[int, list[Batch]] | BaseException
        with ThreadPoolExecutor(READERS, thread_name_prefix="loader") as pool:
            step = self._start_step
            while not self._stop.is_set():
                try:
                    item = step, self._read(step, pool)
                except BaseException as error:  # whoever iterates raises it
                    item = error
                self._put(item)
                if isinstance(item, BaseException):
                    return
                step += 1

    def _put(self, item: tuple[int, list[Batch]] | BaseException) -> None:
        while not self._stop.is_set():
            try:
                self._ready.put(item, timeout=POLL_S)
                return
            except queue.Full:
                continue

    def _read(self, step: int, pool: ThreadPoolExecutor) -> list[Batch]:
        planned = self._planner.step(step)
        draw = CaptionDraw(self._captions, self._seed, planned.epoch) if self._captions else None
        return [
            collate(list(pool.map(partial(self._dataset.sample, draw=draw), micro.samples)), micro, planned.epoch, self._dataset.info.space_factor)
            for micro in share(planned, self._rank, self._world_size)
        ]


def collate(samples: Sequence[Sample], micro: MicroBatch, epoch: int, space_factor: int) -> Batch:
    """Samples as a batch."""
    latents = [sample.latent.to(torch.float32) for sample in samples]
    return Batch(
        latents=latents,
        texts=[sample.text.to(torch.float32) for sample in samples],
        uids=[sample.uid for sample in samples],
        weights=torch.tensor(micro.weights, dtype=torch.float32),
        fps=torch.tensor([sample.fps for sample in samples], dtype=torch.float32),
        sizes=[(latent.shape[-1] * space_factor, latent.shape[-2] * space_factor) for latent in latents],
        epoch=epoch,
    )
