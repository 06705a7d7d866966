"""mp4: a folder with <uid>.mp4 (or an image) of each clip, its caption in <uid>.txt and its description in <uid>.json.

The folder can be a source of a recipe, with `captions: sidecar`.
"""

from __future__ import annotations

from pipelines.export.format import Clip, Format, caption_bytes, clip_suffix, description_json


class Mp4(Format):
    """A format with a folder of files, each with its caption and its description beside it."""

    name: str = "mp4"

    def clip_file(self, clip: Clip) -> str:
        return f"{clip['uid']}{clip_suffix(clip)}"

    def sidecars(self, clip: Clip) -> dict[str, bytes]:
        # An empty .txt would be read as an empty caption.
        caption = {f"{clip['uid']}.txt": caption_bytes(clip) + b"\n"} if clip.get("caption") else {}
        return {**caption, f"{clip['uid']}.json": description_json(clip)}
