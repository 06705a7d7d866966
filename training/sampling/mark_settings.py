"""Settings of the marks on generated files: section `marks` of a recipe."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from cluster import storage
from cluster.config import LocatedError, Settings
from cluster.plugins import PluginField
from training.sampling.watermark_method import FOLDER, WatermarkMethod
from training.sampling.watermarks.spread_spectrum import SpreadSpectrum

OFF = "off"
FILES = ("certificate", "private_key", "watermark_key")


class MarkSettings(Settings):
    """Settings of the marks by which a file tells that it was generated. `marks: off` writes files without any."""

    credentials: bool = Field(
        True, description="Sign each file and say in it that it was generated, by which model: C2PA and XMP metadata."
    )
    watermark: bool = Field(True, description="Mark the pixels invisibly, so that the mark outlives the metadata.")
    watermark_method: Annotated[WatermarkMethod, PluginField(FOLDER, WatermarkMethod)] = Field(
        SpreadSpectrum(),
        description="Kind of watermark: spread_spectrum, which is our own, or the network of a package that you have: "
        "rivagan, trustmark or videoseal.",
    )
    prompt: bool = Field(False, description="Write the prompt into the credentials, which go wherever the file goes.")
    certificate: str | None = Field(
        None,
        min_length=1,
        description="PEM file of the certificate that signs, then those of its issuers; by default a local one is made "
        "once, in the user's configuration folder.",
    )
    private_key: str | None = Field(
        None,
        min_length=1,
        description="PEM file of the certificate's private key, without a password; without it, the program in the "
        "environment variable WORLDLOOM_SIGN_COMMAND signs.",
    )
    timestamp: str | None = Field(
        None,
        pattern=r"^https?://",
        description="URL of a timestamp authority (RFC 3161), which is asked for each file; by default nothing is sent "
        "anywhere.",
    )
    watermark_key: str | None = Field(
        None,
        min_length=1,
        description="File with a secret of your own, which finds the watermark; by default every worldloom finds it.",
    )

    @model_validator(mode="before")
    @classmethod
    def _off(cls, value: Any) -> Any:
        if value == OFF:
            return {"credentials": False, "watermark": False}
        if isinstance(value, str):
            raise ValueError(f"marks are a mapping such as {{prompt: true}}, or {OFF}; got '{value}'")
        return value

    @field_validator(*FILES)
    @classmethod
    def _absolute(cls, uri: str | None) -> str | None:
        return uri and storage.absolute(uri)

    @model_validator(mode="after")
    def _keys_belong_together(self) -> MarkSettings:
        if self.private_key and not self.certificate:
            raise LocatedError(("private_key",), "private_key signs together with certificate; name that file too")
        signing = [key for key in ("certificate", "timestamp") if getattr(self, key)]
        if not self.credentials and (signing or self.prompt):
            key = signing[0] if signing else "prompt"
            raise LocatedError((key,), f"{key} has no effect with credentials: false; remove one of them")
        if not self.watermark and (self.watermark_key or self.watermark_method != SpreadSpectrum()):
            key = "watermark_key" if self.watermark_key else "watermark_method"
            raise LocatedError((key,), "has no effect with watermark: false; remove one of them")
        return self

    @property
    def missing(self) -> list[str]:
        """The marks that are turned off."""
        return [mark for mark in ("credentials", "watermark") if not getattr(self, mark)]
