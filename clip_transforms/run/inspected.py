"""What a path turned out to be: the words that `inspect` prints."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Iterable, Mapping
from typing import Any

_UNITS = ("bytes", "kB", "MB", "GB", "TB")


class InspectError(ValueError):
    """A path that no command can use: there is nothing, it is damaged, or of a foreign kind. One sentence."""


@dataclasses.dataclass(frozen=True)
class Inspected:
    """What a file or folder is.

    Attributes:
        what: a noun with its article.
        facts: (name, value), in the order in which they are shown.
        further: the commands to use next, or a sentence that says what to do.
    """

    what: str
    facts: tuple[tuple[str, str], ...] = ()
    further: tuple[str, ...] = ()

    def within(self, name: str) -> Inspected:
        """Return the same for a file or folder of this name inside of it."""
        return dataclasses.replace(self, what=f"{name} of {self.what}")


def facts_of(**facts: object) -> tuple[tuple[str, str], ...]:
    """Return facts, without those that are empty; `_` in a name stands for a space."""
    return tuple(
        (name.replace("_", " ").strip(), str(value)) for name, value in facts.items() if value not in ("", None)
    )


def command(name: str, *arguments: str) -> str:
    """Return a command line."""
    return shlex.join(["python", "-m", f"pipelines.{name}", *arguments])


def size_of(num_bytes: int) -> str:
    """Return a number of bytes for a person."""
    size, unit = float(num_bytes), 0
    while size >= 1000 and unit < len(_UNITS) - 1:
        size, unit = size / 1000, unit + 1
    return f"{size:,.0f} {_UNITS[unit]}" if unit == 0 or size >= 100 else f"{size:,.3g} {_UNITS[unit]}"


def fates(counts: Mapping[str, int]) -> dict[str, str]:
    """Return what became of the samples: `images` and `captions` → how many were embedded and rejected."""
    found = {}
    for modality in ("image", "caption"):
        embedded, rejected = (counts.get(f"{modality}.{fate}", 0) for fate in ("embedded", "rejected"))
        found[f"{modality}s"] = f"{embedded:,} embedded" + (f", {rejected:,} rejected" if rejected else "")
    return found


def settings_of(settings: Mapping[str, Any]) -> str:
    """Return what a command was asked for, in one line."""
    return ", ".join(f"{name} {_shown(value)}" for name, value in settings.items() if value not in ([], None))


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(_shown, value))
    if isinstance(value, dict):
        return str(value.get("selection") or value.get("file") or next(iter(value.values()), ""))
    return str(value)


def some(names: Iterable[str], most: int = 8) -> str:
    """Return a list of names, cut where it becomes long."""
    found = list(names)
    return ", ".join(found[:most]) + (f" and {len(found) - most:,} more" if len(found) > most else "")
