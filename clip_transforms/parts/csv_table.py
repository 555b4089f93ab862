"""Read the tables that people write by hand or with a spreadsheet."""

from __future__ import annotations

import io
from collections.abc import Mapping

import pyarrow as pa
import pyarrow.csv as pcsv

_SEPARATORS = (",", ";", "\t", "|")  # spreadsheets write semicolons where a comma separates decimals


def read_csv(data: bytes, types: Mapping[str, pa.DataType]) -> pa.Table:
    """Read a CSV file whose first line names its columns.

    Args:
        data: the bytes; commas, semicolons, tabs or bars separate the columns, as the first line shows.
        types: name of a column → its type, where it has that column; other types are guessed.
    Raises:
        pa.ArrowException: if the file is no CSV or a value is of another type.
    """
    head = data.partition(b"\n")[0].decode("utf-8", "replace")
    separator = max(_SEPARATORS, key=head.count)  # the first of several
    return pcsv.read_csv(
        io.BytesIO(data),
        parse_options=pcsv.ParseOptions(delimiter=separator, newlines_in_values=True),
        convert_options=pcsv.ConvertOptions(column_types=dict(types)),
    )
