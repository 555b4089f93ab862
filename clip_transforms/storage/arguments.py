"""Convert and check what people hand to the Python API: places as text or Path, one or several, and plain settings.

Every verb and every record of settings uses these functions, so that an argument of a wrong type is one sentence that
names the argument, what was given and what is allowed.
"""

from __future__ import annotations

import dataclasses
import io
import numbers
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NoReturn, TypeVar

import fsspec

Place = str | os.PathLike[str]
Places = Place | Iterable[Place]
_T = TypeVar("_T")

_PLACE = "a text or a Path"
_LONGEST = 60  # the most characters of a value that a message shows
# Annotation of a field → (whether a value fits, what is allowed).
_KINDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "str": (lambda value: isinstance(value, str), "a text"),
    "bool": (lambda value: isinstance(value, bool), "True or False"),
    "int": (lambda value: _is_number(value, numbers.Integral), "a whole number"),
    "float": (lambda value: _is_number(value, numbers.Real), "a number"),
}
_PLAIN: dict[str, Callable[[Any], Any]] = {"int": int, "float": float}  # JSON knows no numbers of NumPy


class ArgumentTypeError(TypeError, ValueError):
    """An argument has a wrong type. It is a ValueError too, like every refusal of this package; one sentence."""


def refuse_type(argument: str, value: object, allowed: str) -> NoReturn:
    """Refuse an argument.

    Args:
        argument: its name.
        value: the value that was given.
        allowed: what it must be, such as `a whole number`.
    Raises:
        ArgumentTypeError: always.
    """
    shown = repr(value)
    if len(shown) > _LONGEST:
        shown = f"{shown[:_LONGEST]}…"
    name = type(value).__name__
    given = "None" if value is None else f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name} ({shown})"
    raise ArgumentTypeError(f"{argument} is {given}, but it must be {allowed}")


def as_uri(value: object, argument: str, allowed: str = _PLACE) -> str:
    """Return a place as text, from a text or a Path.

    Args:
        value: what was given.
        argument: its name, for the message.
        allowed: everything that this argument may be, for the message.
    Raises:
        ArgumentTypeError: if it is neither a text nor a Path.
        ValueError: if it is empty, or a Path that was made from a URI.
    """
    text = value if isinstance(value, str) else os.fspath(value) if isinstance(value, os.PathLike) else None
    if not isinstance(text, str):
        refuse_type(argument, value, allowed)
    if not text:
        raise ValueError(f"{argument} is an empty text, but it must name a file or a folder")
    if isinstance(value, pathlib.PurePath) and (uri := _lost_uri(value)):
        raise ValueError(
            f"{argument} is {value!r}, but a Path cannot hold a URI, since it makes one slash of two; give the text "
            f"{uri!r}"
        )
    return str(text)  # not NumPy's subclass of str


def as_uris(values: object, argument: str) -> tuple[str, ...]:
    """Return one or several places as texts. The arguments and errors are those of `as_uri`."""
    return tuple(as_uri(value, name, _PLACE) for name, value in several(values, argument, f"{_PLACE}, or several"))


def as_names(values: object, argument: str) -> tuple[str, ...]:
    """Return one or several names as texts; one text is one name, not its letters.

    Raises:
        ArgumentTypeError: if one is no text.
    """
    names = several(values, argument, "a text, or several")
    for name, value in names:
        if not isinstance(value, str):
            refuse_type(name, value, "a text")
    return tuple(str(value) for _, value in names)


def several(values: object, argument: str, allowed: str, one: tuple[type, ...] = ()) -> list[tuple[str, Any]]:
    """Return each of one or several values with its name, such as `inputs[2]`.

    Args:
        values: one value (a text, a Path or an object of a class in `one`), or a list or another iterable of values.
        argument: name of the argument.
        allowed: everything that it may be, for the message.
        one: further classes whose objects are one value.
    Raises:
        ArgumentTypeError: if it is neither.
    """
    if isinstance(values, (str, os.PathLike, *one)):
        return [(argument, values)]
    # Bytes would be numbers, a mapping would lose its values, and an open file would be its lines.
    if not isinstance(values, Iterable) or isinstance(values, (bytes, bytearray, Mapping, io.IOBase)):
        refuse_type(argument, values, allowed)
    return [(f"{argument}[{place}]", value) for place, value in enumerate(values)]


def check_types(record: Any) -> None:
    """Check the fields of a frozen dataclass that are annotated as a text, a number or a truth value; see `as_setting`.

    Raises:
        ArgumentTypeError: naming the first field whose value has a wrong type.
    """
    for field in dataclasses.fields(record):
        if str(field.type).removesuffix(" | None") in _KINDS:
            value = getattr(record, field.name)
            object.__setattr__(record, field.name, as_setting(value, field.name, str(field.type)))


def as_setting(value: Any, argument: str, kind: str) -> Any:
    """Return a text, a number or a truth value; a number of another library, such as NumPy, becomes Python's.

    Args:
        value: what was given.
        argument: its name, for the message.
        kind: its annotation: `str`, `bool`, `int` or `float`, perhaps with ` | None`.
    Raises:
        ArgumentTypeError: if the value has a wrong type.
    """
    plain = kind.removesuffix(" | None")
    if value is None and plain != kind:
        return None
    fits, allowed = _KINDS[plain]
    if not fits(value):
        refuse_type(argument, value, allowed if plain == kind else f"{allowed} or None")
    return _PLAIN[plain](value) if plain in _PLAIN and not isinstance(value, (int, float)) else value


def _is_number(value: object, kind: type) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def _lost_uri(path: pathlib.PurePath) -> str:
    """Return the URI that a Path was made from, as `gs:/web/clip` was from `gs://web/clip`; empty if from none."""
    scheme, colon, rest = str(path).partition(":/")
    return f"{scheme}://{rest}" if colon and scheme in fsspec.available_protocols() else ""
