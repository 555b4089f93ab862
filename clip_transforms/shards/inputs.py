"""What a person writes behind --input → the paths and globs that it stands for."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable

import braceexpand

from clip_transforms import storage
from clip_transforms.shards.unit import PlanError
from clip_transforms.storage import FileInfo


def expand(inputs: Iterable[str]) -> list[str]:
    """`@file` and brace patterns written out, each pattern once.

    Raises:
        PlanError: if one of them is malformed.
    """
    patterns = []
    for text in inputs:
        if text.startswith("@"):
            try:
                data = storage.read_bytes(text[1:]).decode("utf-8-sig")
            except (OSError, UnicodeDecodeError) as error:
                raise PlanError(
                    f"--input {text} cannot be read: {error}; it must be a text file, an input a line"
                ) from None
            lines = [line.strip() for line in data.splitlines() if line.strip()]
            if not lines or any(line.startswith("@") for line in lines):
                raise PlanError(
                    f"--input {text} must hold inputs, one a line, and no further @file; write at least one"
                )
            patterns.extend(expand(lines))
        else:
            patterns.extend([text] if "{" not in text or storage.exists(text) else _braces(text))
    return list(dict.fromkeys(patterns))


def _braces(text: str) -> list[str]:
    try:
        return list(braceexpand.braceexpand(text, escape=False))
    except ValueError as error:
        raise PlanError(f"--input {text} is no brace pattern: {error}; write {{00000..00999}} or {{a,b}}") from None


def root_of(pattern: str, files: list[FileInfo]) -> str:
    """The folder that a pattern's pictures are keyed from: the last one before its first glob character."""
    fixed = storage.normalise(
        pattern[: min((pattern.find(c) for c in "*?[" if c in pattern), default=len(pattern))] + "x"
    )
    return posixpath.dirname(fixed) if storage.is_glob(pattern) else posixpath.dirname(files[0].uri)
