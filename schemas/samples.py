"""Define the rows that readers yield, one per sample in the order of the source, and the columns that users ask for."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import pyarrow as pa

MODALITIES = ("image", "caption")

# Not null if the source offers a modality that the reader cannot use; the modality itself is null then. If both are
# null, the modality is absent.
READ_REJECT = pa.struct([("reason", pa.string()), ("message", pa.string()), ("num_bytes", pa.int64())])

# The URI of a listing's image without its query, for the message of its reject. No user's column can have this name:
# `--columns` ends a name at a colon.
IMAGE_URI = "image:uri"

# With `--captions all`: the captions of a sample, the first one too, each with its text or its reject; null without
# captions. NUM_CAPTIONS is their number at the source, which is larger if there are too many of them to list.
ALL_CAPTIONS = "caption:all"
NUM_CAPTIONS = "caption:number"
CAPTIONS = ("first", "all")

# Types that every reader of Parquet knows.
_COLUMN_TYPES = (
    pa.types.is_string,
    pa.types.is_boolean,
    pa.types.is_integer,
    pa.types.is_floating,
    pa.types.is_date,
    pa.types.is_timestamp,
)


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of the user's own, written `name[=field][:type]`.

    Attributes:
        name: name of the column in the embeddings.
        field: its name in the source: a JSON field, a Parquet column, or the extension of a tar's member.
        type: name of an Arrow type, such as `int32`.
    """

    name: str
    field: str
    type: str = "string"

    @property
    def arrow_type(self) -> pa.DataType:
        """Return the Arrow type that `type` names."""
        return pa.type_for_alias(self.type)

    @classmethod
    def parse(cls, text: str, reserved: Iterable[str]) -> Column:
        """Read `name[=field][:type]`.

        Raises:
            ValueError: if the name is empty or, in any case, one of `reserved`, or the type is not an Arrow type.
        """
        head, _, type_name = text.partition(":")
        name, _, field = head.partition("=")
        column = cls(name, field or name, type_name or "string")
        if not name:
            raise ValueError(f"--columns {text!r} has no name; write name, name=field or name=field:type")
        if name.lower() in {r.lower() for r in reserved}:
            raise ValueError(
                f"--columns {text!r} has the name of a column of ours; give it another name: my_{name}={column.field}"
            )
        try:
            known = any(check(column.arrow_type) for check in _COLUMN_TYPES)
        except ValueError:
            known = False
        if not known:
            raise ValueError(
                f"--columns {text!r} has the type {type_name!r}, but it must be an Arrow type such as string, int32, "
                "int64, float32, float64, bool"
            )
        return column

    def __str__(self) -> str:
        """Return the column as `--columns` takes it."""
        field, type_ = f"={self.field}" if self.field != self.name else "", self.type
        return f"{self.name}{field}{f':{type_}' if type_ != 'string' else ''}"


def samples_schema(columns: Iterable[Column] = (), captions: str = "first") -> pa.Schema:
    """Return the schema of the batches that every reader yields.

    `key` string, `row` int64 (absolute place in the shard), `image` binary (encoded bytes), `caption` string,
    `image_reject` and `caption_reject`, the user's columns, `metadata` string (JSON), IMAGE_URI string (of listings).

    Args:
        columns: the user's own columns.
        captions: one of CAPTIONS; `all` adds ALL_CAPTIONS and NUM_CAPTIONS.
    """
    one = pa.struct([("caption", pa.string()), ("reject", READ_REJECT)])
    several = [pa.field(ALL_CAPTIONS, pa.list_(one)), pa.field(NUM_CAPTIONS, pa.int64())]
    return pa.schema(
        [
            pa.field("key", pa.string(), nullable=False),
            pa.field("row", pa.int64(), nullable=False),
            pa.field("image", pa.binary()),
            pa.field("caption", pa.string()),
            pa.field("image_reject", READ_REJECT),
            pa.field("caption_reject", READ_REJECT),
            *(pa.field(column.name, column.arrow_type) for column in columns),
            pa.field("metadata", pa.string()),
            pa.field(IMAGE_URI, pa.string()),
            *(several if captions == "all" else []),
        ]
    )
