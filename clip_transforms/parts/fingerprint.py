"""The embedding fingerprint: everything that decides the numbers of a dataset."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Container, Iterator, Mapping

from clip_transforms.clip.preprocess import EXIF_APPLIED, FAST_DECODE

Fields = Mapping[str, str]
# Every other field is named like the flag that sets it.
_NAMES = {
    "model": "the SHA-256 of --model",
    "heads": "the number of attention heads (vision, text) of --model",
    "preprocessing": "the preprocessing of --model",
    "tokenizer": "the tokenizer of this package",
}
_OF_THE_MODEL = ("model", "heads", "activation", "preprocessing", "checkpoint_key")  # fields that follow from --model


class FingerprintError(ValueError):
    """An output was made with other settings. The message is one sentence."""


def fingerprint(fields: Fields) -> str:
    """Hash the fields that decide the numbers; returns 32 hex digits."""
    return hashlib.sha256(json.dumps(dict(fields), sort_keys=True).encode()).hexdigest()[:32]


def check_same(output: str, old: Fields, new: Fields, models: tuple[str, str] = ("", "")) -> None:
    """Refuse to mix two fingerprints in one dataset.

    Args:
        output: URI of the dataset.
        old: fields that the dataset was made with.
        new: fields of this run.
        models: names or locations of the dataset's checkpoint and of this run's.
    Raises:
        FingerprintError: naming the flag, the old and the new value of each field that differs. If it is another model,
            its name stands for the fields that follow from it.
    """
    other_model = models[0] != models[1] and old.get("model") != new.get("model")
    changes = list(_changes(old, new, _OF_THE_MODEL if other_model else ()))
    if other_model:
        changes.insert(0, f"it was made with --model {models[0]}, but now --model is {models[1]}")
    if changes:
        raise FingerprintError(
            f"--output {output} holds a dataset made with other settings: {'; '.join(changes)}. Give another --output, "
            "the old settings, or --overwrite to replace it"
        )


def _changes(old: Fields, new: Fields, passed_over: Container[str]) -> Iterator[str]:
    for name in sorted({*old, *new}):
        before, now = old.get(name), new.get(name)
        if name == "preprocessing" and before and now:
            if (FAST_DECODE in before) > (FAST_DECODE in now):
                yield "--fast_decode was given, but is not given now"
            if (FAST_DECODE in before) < (FAST_DECODE in now):
                yield "--fast_decode was not given, but is given now"
            if (EXIF_APPLIED in before) != (EXIF_APPLIED in now):
                old_value, new_value = ("apply" if EXIF_APPLIED in value else "ignore" for value in (before, now))
                yield f"--exif_orientation was {old_value!r}, but is now {new_value!r}"
            for asked in (FAST_DECODE, EXIF_APPLIED):
                before, now = before.replace(asked, ""), now.replace(asked, "")
        if before != now and name not in passed_over:
            yield f"{_NAMES.get(name, f'--{name}')} was {_shown(before)}, but is now {_shown(now)}"


def _shown(value: str | None) -> str:
    # An option that is younger than the format is recorded only where it was given.
    return repr(value) if value else "not given"
