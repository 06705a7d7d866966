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
        description="local: start Ray here, on 127.0.0.1; auto: the cluster that this machine belongs to.",
    )
    cpus: int | None = Field(None, ge=1, description="CPU cores that a local Ray may use; null uses all of them.")

    @field_validator("address")
    @classmethod
    def _is_known(cls, address: str) -> str:
        if address.startswith("ray://"):
            raise ValueError(
                f"'{address}' is an address of Ray Client, over which Ray Data and Ray Train do not run; write auto "
                "and run the command on the head node or send it there: ray job submit --address http://HEAD:8265 -- "
                "worldloom run ..."
            )
        if address not in ("local", "auto"):
            raise ValueError(f"'{address}' is not an address; write local or auto")
        return address
