"""The embedding fingerprint: what decides the numbers of a dataset."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

Fields = Mapping[str, str]


class FingerprintError(ValueError):
    """An output that was made with other settings, in one sentence."""


def fingerprint(fields: Fields) -> str:
    """Hex digest, 32 characters, of the fields that decide the numbers."""
    return hashlib.sha256(json.dumps(dict(fields), sort_keys=True).encode()).hexdigest()[:32]


def check_same(output: str, old: Fields, new: Fields) -> None:
    """Refuse to mix two fingerprints in one dataset.

    Raises:
        FingerprintError: naming each field with its old and its new value.
    """
    differing = [name for name in sorted({*old, *new}) if old.get(name) != new.get(name)]
    if differing:
        changes = "; ".join(f"{name} is {old.get(name)!r}, but now {new.get(name)!r}" for name in differing)
        raise FingerprintError(
            f"--output {output} holds a dataset made with other settings: {changes}. Give another --output, the old "
            "settings, or --overwrite to replace it"
        )
