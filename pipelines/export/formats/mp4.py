"""mp4: a folder of files: <uid>.mp4 (or an image), with its caption in <uid>.txt and all that is known of it in <uid>.json.

The folder is itself a source with `captions: sidecar`.
"""

from __future__ import annotations

from pipelines.export.format import Clip, Format, as_json, caption_of, suffix


class Mp4(Format):
    """A folder of files, each with its caption and its description beside it."""

    name: str = "mp4"

    def clip_file(self, clip: Clip) -> str:
        return f"{clip['uid']}{suffix(clip)}"

    def beside(self, clip: Clip) -> dict[str, bytes]:
        # A .txt without words would stand for an empty caption.
        captioned = {f"{clip['uid']}.txt": caption_of(clip) + b"\n"} if clip.get("caption") else {}
        return {**captioned, f"{clip['uid']}.json": as_json(clip)}
