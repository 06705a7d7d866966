"""How to reach Ray, without importing it: that takes a third of a second, which commands that only look need not wait for."""

from __future__ import annotations

from pydantic import Field, field_validator

from cluster.config import Settings


class RaySettings(Settings):
    """The recipe's `ray` section."""

    address: str = Field(
        "local",
        description="local: start Ray here; auto: the cluster this machine belongs to; ray://host:10001: a remote one.",
    )
    cpus: int | None = Field(None, ge=1, description="Cores that a local Ray may use; all of them when not given.")

    @field_validator("address")
    @classmethod
    def _known(cls, address: str) -> str:
        if address not in ("local", "auto") and not address.startswith("ray://"):
            raise ValueError(f"'{address}' is not an address; write local, auto or ray://host:10001")
        return address
