"""A small stored data set: real shards, a text table and a manifest, of drifting gradients encoded by `linear`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import torch

from captioning.encoder import NULL_CAPTION, text_key
from captioning.encoders.hashing import Hashing
from training.autoencoders.linear import Linear
from training.data.buckets import Bucket
from training.data.manifest import DatasetInfo
from training.data.manifest_writer import write_manifest
from training.data.shard_writer import LatentRow, write_shard
from training.data.shards import ShardInfo, read_index
from training.data.text_index import read_text_index
from training.data.text_tables import TextReader, write_text_table

SETTINGS = Linear()
AUTOENCODER = SETTINGS.open()
ENCODER = Hashing(dim=16).open()
CAPTIONS = ("one word", "a longer caption of six words", "sand")
CLIPS, STILLS = Bucket(32, 16, 9, 8.0), Bucket(16, 16, 1, 8.0)


def video(bucket: Bucket, seed: int) -> torch.Tensor:
    """Return a video `[3, T, H, W]` of smooth, drifting waves of random colours."""
    rng = torch.Generator().manual_seed(seed)
    phase, speed, slope = (torch.rand(3, 1, 1, 1, generator=rng) * scale for scale in (6.3, 0.5, 0.3))
    t, y, x = torch.meshgrid(
        *(torch.arange(float(n)) for n in (bucket.frames, bucket.height, bucket.width)), indexing="ij"
    )
    return 0.8 * torch.sin(phase + speed * t + slope * (x + 0.5 * y))


def latent_row(bucket: Bucket, number: int, uid: str | None = None) -> LatentRow:
    """Return the encoded video of seed `number`, with uid `BUCKET-NUMBER` unless `uid` is another."""
    pixels = video(bucket, number)[None]
    last_frame = AUTOENCODER.encode(pixels[:, :, -1:])[0].to(torch.bfloat16) if bucket.frames > 1 else None
    return LatentRow(
        uid=uid or f"{bucket.name}-{number:04d}",
        latent=AUTOENCODER.encode(pixels)[0].to(torch.bfloat16),
        last_frame_latent=last_frame,
        source=f"videos/{number}.mp4",
        start_pts=1000 * number,
        end_pts=1000 * number + 512,
        time_base_num=1,
        time_base_den=512,
        fps=bucket.fps,
        crop=(1, 2, 1 + bucket.width, 2 + bucket.height),
    )


def shard_info(bucket: Bucket) -> ShardInfo:
    """Return the description of a shard of `latent_row`s."""
    return ShardInfo.from_autoencoder(SETTINGS, AUTOENCODER, bucket, "stored")


def dataset_info() -> DatasetInfo:
    """Return the description of the data set that `write_dataset` writes."""
    return DatasetInfo.from_encoders(SETTINGS, AUTOENCODER, Hashing(dim=16), "texts", "stored")


def shard_file(bucket: Bucket) -> str:
    """Return the path of a bucket's shard, relative to the root of the data set."""
    return f"latents/bucket={bucket.name}/part-0.parquet"


def shard_path(root: Path, bucket: Bucket) -> Path:
    """Return the path of a bucket's shard in the data set at `root`."""
    return root / shard_file(bucket)


def write_dataset(root: Path, counts: Mapping[Bucket, int], info: DatasetInfo | None = None) -> str:
    """Write a data set with this many samples per bucket, every fourth for validation; return its manifest's URI."""
    rows = []
    for bucket, count in counts.items():
        file = shard_file(bucket)
        write_shard(str(root / file), [latent_row(bucket, number) for number in range(count)], shard_info(bucket))
        for number, row in enumerate(read_index(str(root / file)).to_pylist()):
            caption = CAPTIONS[number % len(CAPTIONS)]
            extra = {
                "bucket": bucket.name,
                "kind": "image" if bucket.frames == 1 else "video",
                "file": file,
                "text_key": text_key(caption, ENCODER.identity),
                "n_text": len(caption.split()),
                "caption": caption,
                "caption_kind": "words",
                "other_captions": [],
                "clip_start_pts": row["start_pts"],
                "clip_end_pts": row["end_pts"],
                "content_x0": 0,
                "content_y0": 0,
                "content_x1": 4 + 2 * bucket.width,
                "content_y1": 4 + bucket.height,
                "source_width": 4 + 2 * bucket.width,
                "source_height": 4 + bucket.height,
                "cluster": str(number),
                "split": "val" if number % 4 == 3 else "train",
            }
            rows.append({**row, **extra})
    embeddings = {
        text_key(caption, ENCODER.identity): ENCODER.encode([caption])[0] for caption in (NULL_CAPTION, *CAPTIONS)
    }
    write_text_table(str(root / "texts/part-0.parquet"), embeddings, ENCODER.identity)
    manifest_uri = str(root / "manifest-0/_manifest.parquet")
    write_manifest(manifest_uri, pa.Table.from_pylist(rows), info or dataset_info())
    return manifest_uri


def flip_bit(path: Path, offset: int) -> None:
    """Flip one bit of the byte at `offset`."""
    data = bytearray(path.read_bytes())
    data[offset] ^= 0x10
    path.write_bytes(data)


def bytes_of(latent: torch.Tensor) -> bytes:
    """Return the bytes of a bfloat16 tensor as shards store them."""
    return latent.contiguous().view(torch.int16).numpy().tobytes()


def stored_texts(folder: Path) -> dict[str, torch.Tensor]:
    """Return every embedding of a folder of text tables, by key."""
    index = read_text_index(str(folder))
    encoding = index.encoding()
    reader = TextReader("" if encoding is None else encoding.identity)
    return {place.key: reader.get(place) for place in index.places(index.rows)}
