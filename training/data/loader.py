"""From a manifest to micro-batches: one rank's samples of each step, read ahead and checked."""

from __future__ import annotations

import itertools
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
from training.data.shards import CROP, DatasetInfo, is_mirrored, read_manifest, tables_root
from training.data.text_tables import TextReader
from training.framing import Framing, cut_out

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
    framing: Framing


@dataclass(frozen=True)
class Batch:
    """A micro-batch of B samples, whose shapes may differ; in pinned memory where there is CUDA."""

    latents: list[Tensor]
    """float32 `[C, t, h, w]` of each sample."""
    tails: list[Tensor | None]
    """The last picture of each by itself, float32 `[C, 1, h, w]`; None for an image."""
    texts: list[Tensor]
    """Embedding of each caption, float32 `[n, D]`, unpadded."""
    uids: list[str]
    weights: Tensor
    """float32 `[B]`: 1 for a sample, 0 for a repeated one that counts for nothing; see `training.data.plan.MicroBatch`."""
    fps: Tensor
    """float32 `[B]`, frames a second."""
    sizes: list[tuple[int, int]]
    """Width and height of each sample in pixels."""
    framings: list[Framing]
    """How each was cut out of its source."""
    buckets: list[str]
    """Name of each sample's bucket."""
    passes: list[int]
    """How often each sample has been seen before. Chance is keyed on it: it is the epoch, unless the sample's bucket has a weight."""
    epoch: int


@dataclass(frozen=True)
class CaptionDraw:
    """What decides which caption a sample has; see `training.data.captions.choose`."""

    weights: Mapping[str, float]
    seed: int

    def of(self, row: Mapping[str, Any], seen: int) -> Mapping[str, Any]:
        """`caption` and `text_key` of a manifest's row that has been seen so often before."""
        kinds = [row["caption_kind"], *(other["kind"] for other in row["other_captions"])]
        number = choose(kinds, self.weights, self.seed, seen, row["uid"])
        return row["other_captions"][number - 1] if number else row  # type: ignore[no-any-return]


class Dataset:
    """The samples of one split, by row number."""

    def __init__(self, table: pa.Table, info: DatasetInfo, shards: ShardReader, texts: TextReader) -> None:
        self.table, self.info = table, info
        self._shards, self._texts = shards, texts
        names = [
            "uid",
            "kind",
            "bucket",
            "file",
            "row_group",
            "row",
            "checksum",
            "fps",
            *CROP,
            "source_width",
            "source_height",
        ]
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

    def sample(self, index: int, seen: int = 0, draw: CaptionDraw | None = None) -> Sample:
        """Row `index` of `table`, seen so often before, with its main caption or the one that is drawn.

        Raises `DamagedError` with file, row and uid when its bytes are not those that were written, or its crop box is not inside its source.
        """
        (row,) = self._rows.slice(index, 1).to_pylist()
        place = row["file"], row["row_group"], row["row"]
        said = draw.of(row, seen) if draw else row
        try:
            stored = self._shards.read(*place)
            if stored.checksum != row["checksum"]:
                raise DamagedError("the latent's bytes are not those that were written")
            text = self._texts.get(said["text_key"])
            x0, y0, x1, y1 = (row[name] for name in CROP)
            framing = cut_out((x0, y0, x1, y1), row["source_width"], row["source_height"], is_mirrored(row["uid"]))
        except (DamagedError, ValueError) as error:
            where = f"{row['file']}: row {row['row']} of row group {row['row_group']}, sample {row['uid']}"
            raise DamagedError(f"{where}: {error}. Run `worldloom verify`, remove the file and curate again") from error
        return Sample(
            row["uid"],
            stored.latent,
            stored.tail_latent,
            text,
            said["caption"],
            row["fps"],
            row["kind"],
            row["bucket"],
            framing,
        )


def _check_shard(shards: ShardReader, file: str, buckets: Sequence[str], info: DatasetInfo) -> None:
    shard = shards.info(file)
    if shard.autoencoder_identity != info.autoencoder_identity:
        raise DamagedError(
            f"{file}: its latents are by autoencoder {shard.autoencoder_identity}, those of the manifest by {info.autoencoder_identity}; "
            "latents of two autoencoders do not mix: curate again with one"
        )
    if list(buckets) != [shard.bucket.name]:
        raise DamagedError(
            f"{file}: holds bucket {shard.bucket.name}, and the manifest says {' and '.join(sorted(buckets))}; curate again"
        )


def _check_texts(texts: TextReader, table: pa.Table, info: DatasetInfo, manifest_uri: str) -> None:
    others = pc.struct_field(pc.list_flatten(table["other_captions"]), "text_key")
    needed = {info.null_text_key, *pc.unique(table["text_key"]).to_pylist(), *pc.unique(others).to_pylist()}
    missing = sorted(key for key in needed if key not in texts)
    if missing:
        raise DamagedError(
            f"{manifest_uri}: {len(missing)} of {len(needed)} text embeddings are missing from {info.text_folder}, {missing[0]} first"
        )
    if texts.identity != info.text_encoder_identity:
        raise DamagedError(
            f"{info.text_folder}: holds embeddings by {texts.identity}, and the manifest says {info.text_encoder_identity}"
        )


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
        self._draw = CaptionDraw(captions, seed) if captions else None
        self._pin = torch.cuda.is_available()
        self._ready: queue.Queue[tuple[int, list[Batch]] | BaseException] = queue.Queue(prefetch)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="loader", daemon=True)

    def __enter__(self) -> Loader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
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
        read = partial(self._dataset.sample, draw=self._draw)
        micros = share(planned, self._rank, self._world_size)
        # All of a step at once: a micro-batch of few samples would not keep the readers busy.
        samples = pool.map(
            read,
            *(
                itertools.chain.from_iterable(rows)
                for rows in zip(*((m.samples, m.passes) for m in micros), strict=True)
            ),
        )
        space_factor = self._dataset.info.space_factor
        return [
            collate(list(itertools.islice(samples, len(micro.samples))), micro, planned.epoch, space_factor, self._pin)
            for micro in micros
        ]


def collate(samples: Sequence[Sample], micro: MicroBatch, epoch: int, space_factor: int, pin: bool) -> Batch:
    """Samples as a micro-batch; `pin` puts its tensors where CUDA copies from without waiting."""

    def ready(tensor: Tensor) -> Tensor:
        tensor = tensor.to(torch.float32)
        return tensor.pin_memory() if pin else tensor

    return Batch(
        latents=[ready(sample.latent) for sample in samples],
        tails=[None if sample.tail_latent is None else ready(sample.tail_latent) for sample in samples],
        texts=[ready(sample.text) for sample in samples],
        uids=[sample.uid for sample in samples],
        weights=ready(torch.tensor(micro.weights)),
        fps=ready(torch.tensor([sample.fps for sample in samples])),
        sizes=[(sample.latent.shape[-1] * space_factor, sample.latent.shape[-2] * space_factor) for sample in samples],
        framings=[sample.framing for sample in samples],
        buckets=[sample.bucket for sample in samples],
        passes=list(micro.passes),
        epoch=epoch,
    )
