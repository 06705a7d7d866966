"""The contract of a captioner: what is known of a clip in, a caption out."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cluster.plugins import Plugin

FOLDER = "captioning.engines"


@dataclass(frozen=True)
class ClipContext:
    """What a captioner may know of a clip: its uid, its measured columns and the caption that came with the source."""

    uid: str
    columns: Mapping[str, Any]
    source_caption: str | None = None


@dataclass(frozen=True)
class Caption:
    """A caption, with the uid it belongs to: the caller checks that it is the one it asked for."""

    uid: str
    text: str


class Captioner(abc.ABC):
    """Captions clips in batches, one caption a clip, in order."""

    @abc.abstractmethod
    def caption(self, clips: Sequence[ClipContext]) -> list[Caption]: ...


class CaptionerSettings(Plugin):
    """Settings of a captioner, by `name`. One subclass a file in `captioning/engines/`."""

    @abc.abstractmethod
    def reads(self) -> tuple[str, ...]:
        """Measured columns the captioner uses."""

    @abc.abstractmethod
    def identity(self) -> str:
        """What the captions depend on besides the settings: the version of the rules, or the weights."""

    @abc.abstractmethod
    def open(self) -> Captioner: ...
