"""Turn columns of Parquet files into Python values, or cast them; a value that cannot be had is null and counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pyarrow as pa

from clip_transforms import storage
from clip_transforms.shards.batches import cast

# Errors of `as_py` for a value that Python cannot hold or decode.
_NO_PYTHON_VALUE = (ValueError, OverflowError, KeyError, pa.ArrowException)


def python_values(array: pa.Array, notes: Counter) -> list[Any]:
    """Return the Python values of a column; one that Python cannot hold or decode as UTF-8 is None and counted."""
    if pa.types.is_temporal(array.type):
        try:
            array = array.cast(pa.string())  # Arrow's own text, since Python has no year after 9999
        except pa.ArrowException as error:
            if storage.is_of_the_machine(error):
                raise

    def lost(scalar: pa.Scalar, error: Exception) -> None:
        notes["values that could not be cast"] += 1

    return values_of(array, lost)


def values_of(array: pa.Array, instead: Callable[[pa.Scalar, Exception], Any]) -> list[Any]:
    """Return the Python values of a column.

    Args:
        array: of any type.
        instead: called for each value that Python cannot hold or that is not UTF-8, with the error; returns a
            substitute.
    """
    try:
        return array.to_pylist()
    except _NO_PYTHON_VALUE as error:
        if storage.is_of_the_machine(error):
            raise
        return [value_of(scalar, instead) for scalar in array]


def value_of(scalar: pa.Scalar, instead: Callable[[pa.Scalar, Exception], Any]) -> Any:
    """Return one Python value, as `values_of` does."""
    try:
        return scalar.as_py()
    except _NO_PYTHON_VALUE as error:
        if storage.is_of_the_machine(error):
            raise
        return instead(scalar, error)


def cast_column(array: pa.Array, type_: pa.DataType, notes: Counter) -> pa.Array:
    """Cast a column; a value that cannot be cast is null and counted."""
    try:
        found = array.cast(type_)
        found.validate(full=True)  # the cast itself does not notice text that is not UTF-8
        return found
    except (pa.ArrowException, UnicodeDecodeError) as error:
        if storage.is_of_the_machine(error):
            raise
        return cast(python_values(array, notes), type_, notes)
