"""Find fields in JSON objects by names such as `a.b` and `a[0]`, and note the fields of units that lack a modality."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from clip_transforms.parts.counts import SEEN
from clip_transforms.shards.unit import with_cure
from schemas.samples import MODALITIES

_LOOKED_AT = 8  # samples of a unit whose fields are noted
_NAMED = 20  # names of fields, and of extensions, that a unit notes
_UNREAD = " members that were not read"
_INDEX = re.compile(r"\[(\d+)\]")


def json_field(value: Any, name: str) -> Any:
    """Return the field that a name such as `a`, `a.b`, `a[0]` or `a[0].b` means; None if there is none.

    A field whose own name holds dots or brackets is found too, and comes first.
    """
    if not name:
        return value
    if isinstance(value, list):
        match = _INDEX.match(name)
        if not match or int(match[1]) >= len(value):
            return None
        return json_field(value[int(match[1])], name[match.end() :].removeprefix("."))
    if not isinstance(value, dict):
        return None
    if name in value:
        return value[name]
    for stop in [place for place in range(len(name) - 1, 0, -1) if name[place] in ".["]:
        if name[:stop] in value:
            return json_field(value[name[:stop]], name[stop:].removeprefix("."))
    return None


def outer_field(names: Collection[str], name: str) -> str:
    """Return the field that a name such as `a`, `a.b` or `a[0]` begins at, as `json_field` finds it; else the name."""
    stops = [place for place in range(len(name), 0, -1) if place == len(name) or name[place] in ".["]
    return next((name[:stop] for stop in stops if name[:stop] in names), name)


def field_names(fields: Mapping[str, Any]) -> Iterator[str]:
    """Yield the names of the fields that have a text, as `json_field` takes them: of nested ones `a.b` and `a[0]`."""
    for name, value in fields.items():
        if isinstance(value, dict):
            yield from (f"{name}.{inner}" for inner, found in value.items() if _may_hold_text(found))
        elif isinstance(value, list):
            yield from [f"{name}[0]"] if value and _may_hold_text(value[0]) else []
        elif _may_hold_text(value):
            yield name


def _may_hold_text(value: Any) -> bool:
    """Return whether a value may be a caption or a URI, or hold one. A number is none, and naming it would not help."""
    return isinstance(value, (str, dict, list)) and bool(value)


class SeenFields:
    """The fields of a unit's first samples, which are noted if no sample of the unit offers an image, or a caption."""

    def __init__(self) -> None:
        """Begin a unit."""
        self._offered: set[str] = set()
        self._samples = 0
        self._names: Counter = Counter()

    def add(self, sample: Mapping[str, Any], names: Iterable[str]) -> None:
        """Look at a sample.

        Args:
            sample: what a reader yields.
            names: what the sample had and the reader took as neither image nor caption.
        """
        for modality in MODALITIES:
            if sample.get(modality) is not None or sample.get(f"{modality}_reject") is not None:
                self._offered.add(modality)
        self._samples += 1
        if self._samples <= _LOOKED_AT:
            for name in sorted(set(names)):  # in one order, since the notes are part of the part's bytes
                if name in self._names or len(self._names) < _NAMED:
                    self._names[name] += 1

    def note(self, notes: Counter) -> None:
        """End the unit."""
        if self._samples and len(self._offered) < len(MODALITIES):
            notes.update({f"{SEEN}{name}": count for name, count in sorted(self._names.items())})


def count_unread(extension: str, notes: Counter) -> None:
    """Count a member of a tar that was not read, by its extension."""
    text = (with_cure(f".{extension}") if extension else "extensionless") + _UNREAD
    if text not in notes and sum(note.endswith(_UNREAD) for note in notes) >= _NAMED:
        text = f"other{_UNREAD}"
    notes[text] += 1
