"""The metadata that Hugging Face reads from the head of a card: YAML between two lines of dashes.

The keys are those of `DatasetCardData` and `ModelCardData` in the package `huggingface_hub`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from cluster.yaml_text import dump

UNKNOWN = "unknown"
"""Licence of content that states none, as Hugging Face names it."""
TAGS = ("worldloom", "text-to-video", "video")
OTHER = "other"
"""Licence of Hugging Face for one that is not in its list."""
LICENSES = frozenset(
    """
    apache-2.0 mit bsd-2-clause bsd-3-clause cc cc0-1.0 cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0
    cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0
    cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 cdla-permissive-1.0 cdla-permissive-2.0 pddl odc-by odbl gfdl
    openrail openrail++ creativeml-openrail-m bigscience-openrail-m gpl-3.0 lgpl-3.0 agpl-3.0 mpl-2.0 unlicense
    """.split()  # noqa: SIM905  a list of words reads as one
)
"""Identifiers of Hugging Face's list that footage and models of video have."""
SIZES = {
    10**3: "n<1K",
    10**4: "1K<n<10K",
    10**5: "10K<n<100K",
    10**6: "100K<n<1M",
    10**7: "1M<n<10M",
    10**8: "10M<n<100M",
    10**9: "100M<n<1B",
}
"""Categories of sizes by the number of samples that they stay below."""
PATH_PARTS = 3
"""Parts of a path that are published, such as run, `checkpoints` and step."""
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def front_matter(metadata: Mapping[str, Any]) -> str:
    """Return the head of a card, without the keys whose values are None or empty."""
    given = {key: value for key, value in metadata.items() if value not in (None, "", [], {})}
    return f"---\n{dump(given).rstrip()}\n---\n\n"


def license_keys(stated: Collection[str]) -> dict[str, Any]:
    """Return the keys of the licences of a whole, which is unknown if that of a part is.

    Licences that Hugging Face's list lacks are `other`, with their names in `license_name`.
    """
    if not stated:
        return {}
    if UNKNOWN in stated:
        return {"license": UNKNOWN}
    names = sorted(set(stated))
    listed = sorted({name.lower() if name.lower() in LICENSES else OTHER for name in names})
    others = [name for name in names if name.lower() not in LICENSES]
    found: dict[str, Any] = {"license": listed[0] if len(listed) == 1 else listed}
    return found | ({"license_name": ", ".join(others)} if others else {})


def size_category(n: int) -> str:
    """Return the category of a data set of n samples."""
    return next((name for bound, name in SIZES.items() if n < bound), "1B<n<10B")


def hub_id(path: str | None) -> str | None:
    """Return a path if it has the form of an id, `owner/name`; None otherwise."""
    return path if path and HUB_ID.fullmatch(path) else None


def public_path(path: str) -> str:
    """Return the last parts of a path: the folders above mean nothing elsewhere, and may name a person."""
    return "/".join(path.rstrip("/").split("/")[-PATH_PARTS:])
