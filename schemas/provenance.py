"""Define the footer of every part: JSON under the key `clip`.

It holds no time, host, path of this machine, thread or run id.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, TypedDict

FOOTER_KEY = b"clip"
FORMAT_VERSION = 1


class FormatError(ValueError):
    """A file that a newer version of this program wrote, in one sentence."""


class Footer(TypedDict, total=False):
    """The facts that a part states about itself.

    Keys:
        format: FORMAT_VERSION.
        fingerprint: hex hash of the settings that decide the numbers of the dataset.
        stamp: stamp of the source that the unit was read from.
        digest: hex SHA-256 over the rows of the unit's embeddings and rejects; the same in all parts of the unit.
        counts: counts of samples by outcome, see `clip_transforms.parts.counts`.
        provenance: checkpoint hash, architecture, activation, precision and device used, batch size, versions.
        shard: URI of the unit's shard.
        taxonomy, taxonomy_digest, top_labels: the taxonomy and the settings of a labels part.
        maker, logit_scale: in the file of a taxonomy's class embeddings, what it was made from, and the log parameter.
    """

    format: int
    fingerprint: str
    stamp: str
    digest: str
    counts: dict[str, int]
    provenance: dict[str, str | int]
    shard: str
    maker: list[str]
    logit_scale: float
    taxonomy: str
    taxonomy_digest: str
    top_labels: int


def encode_footer(footer: Footer) -> dict[str, str]:
    """Return the key and value that store a footer in a Parquet file."""
    return {FOOTER_KEY.decode(): json.dumps({"format": FORMAT_VERSION, **footer}, sort_keys=True)}


def decode_footer(metadata: Mapping[bytes, bytes] | None, where: str) -> Footer | None:
    """Return the footer in a Parquet file's key-value metadata; None if the file is not one of ours.

    Args:
        metadata: the file's key-value metadata.
        where: URI of the file, for the message.
    Raises:
        FormatError: if a newer version of this program wrote it.
    """
    text = (metadata or {}).get(FOOTER_KEY)
    footer = json.loads(text) if text else None
    if footer is not None:
        check_format(footer, where)
    return footer


def check_format(content: Mapping[str, Any], where: str) -> None:
    """Refuse a file that a newer version of this program wrote; a file without `format` has format 1.

    Args:
        content: a footer, or a JSON file of a dataset.
        where: URI of the file, for the message.
    Raises:
        FormatError: naming the file, its format, and the newest that this version reads.
    """
    found = content.get("format", 1)
    if not isinstance(found, int) or found > FORMAT_VERSION:
        raise FormatError(
            f"{where} has format {found!r}, but this version of clip-transforms reads formats up to {FORMAT_VERSION}; "
            "update clip-transforms (pip install --upgrade clip-transforms), or give another dataset"
        )
