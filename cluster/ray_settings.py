"""Settings of the Ray connection, in a module that does not import Ray.

Importing Ray takes a third of a second, which commands that only read settings need not wait for.
"""

from __future__ import annotations

from pydantic import Field, field_validator

from cluster.config import Settings


class RaySettings(Settings):
    """Settings of the recipe's `ray` section."""

    address: str = Field(
        "local",
        description="local: start Ray here; auto: the cluster this machine belongs to; ray://host:10001: a remote one.",
    )
    cpus: int | None = Field(None, ge=1, description="CPU cores that a local Ray may use; null uses all of them.")

    @field_validator("address")
    @classmethod
    def _is_known(cls, address: str) -> str:
        if address not in ("local", "auto") and not address.startswith("ray://"):
            raise ValueError(f"'{address}' is not an address; write local, auto or ray://host:10001")
        return address
