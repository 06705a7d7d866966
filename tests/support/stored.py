"""A small stored data set: real shards, text table and manifest, of drifting gradients encoded by the autoencoder `linear`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import torch

from captioning.encoder import NULL_CAPTION, text_key
from captioning.encoders.hashing import Hashing
from training.autoencoders.linear import Linear
from training.data.buckets import Bucket
from training.data.shard_writer import LatentRow, write_shard
from training.data.shards import DatasetInfo, ShardInfo, read_index, write_manifest
from training.data.text_tables import write_text_table

SETTINGS = Linear()
AUTOENCODER = SETTINGS.open()
ENCODER = Hashing(dim=16).open()
CAPTIONS = ("one word", "a longer caption of six words", "sand")
CLIPS, STILLS = Bucket(32, 16, 9, 8.0), Bucket(16, 16, 1, 8.0)


def video(bucket: Bucket, seed: int) -> torch.Tensor:
    """`[3, T, H, W]`: smooth waves of random colours that drift."""
    chance = torch.Generator().manual_seed(seed)
    phase, speed, slope = (torch.rand(3, 1, 1, 1, generator=chance) * scale for scale in (6.3, 0.5, 0.3))
    t, y, x = torch.meshgrid(
        *(torch.arange(float(n)) for n in (bucket.frames, bucket.height, bucket.width)), indexing="ij"
    )
    return 0.8 * torch.sin(phase + speed * t + slope * (x + 0.5 * y))


def latent_row(bucket: Bucket, number: int, uid: str | None = None) -> LatentRow:
    pixels = video(bucket, number)[None]
    tail = AUTOENCODER.encode(pixels[:, :, -1:])[0].to(torch.bfloat16) if bucket.frames > 1 else None
    return LatentRow(
        uid=uid or f"{bucket.name}-{number:04d}",
        latent=AUTOENCODER.encode(pixels)[0].to(torch.bfloat16),
        last_frame_latent=tail,
        source=f"videos/{number}.mp4",
        start_pts=1000 * number,
        end_pts=1000 * number + 512,
        time_base_num=1,
        time_base_den=512,
        fps=bucket.fps,
        crop=(1, 2, 1 + bucket.width, 2 + bucket.height),
    )


def shard_info(bucket: Bucket) -> ShardInfo:
    return ShardInfo.of(SETTINGS, AUTOENCODER, bucket, "stored")


def dataset_info() -> DatasetInfo:
    return DatasetInfo(
        tables_root="..",
        autoencoder=SETTINGS.model_dump(mode="json"),
        autoencoder_identity=AUTOENCODER.identity,
        channels=AUTOENCODER.channels,
        time_factor=AUTOENCODER.time_factor,
        space_factor=AUTOENCODER.space_factor,
        text_encoder=Hashing(dim=16).model_dump(mode="json"),
        text_encoder_identity=ENCODER.identity,
        text_folder="texts",
        null_text_key=text_key(NULL_CAPTION, ENCODER.identity),
        fingerprint="stored",
    )


def write_dataset(root: Path, counts: Mapping[Bucket, int], info: DatasetInfo | None = None) -> str:
    """URI of the manifest of a data set with that many samples a bucket, every fourth in the validation split."""
    rows = []
    for bucket, count in counts.items():
        file = f"latents/bucket={bucket.name}/part-0.parquet"
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
    data = bytearray(path.read_bytes())
    data[offset] ^= 0x10
    path.write_bytes(data)
