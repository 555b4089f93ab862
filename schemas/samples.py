"""What a reader yields: one row per sample, in the order of the source; and the columns that a user asks to keep."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import pyarrow as pa

MODALITIES = ("image", "caption")

# Set where the source offers a modality that the reader cannot use. The modality itself is null then; where both are
# null, it is absent.
READ_REJECT = pa.struct([("reason", pa.string()), ("message", pa.string()), ("num_bytes", pa.int64())])

# The URI of a listing's image without its query, for the message of its reject. No user's column can have this name:
# `--columns` ends a name at a colon.
IMAGE_URI = "image:uri"

# What every reader of Parquet knows.
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
    """A column of the user's own: `name[=field][:type]`.

    Attributes:
        name: of the column in the embeddings.
        field: of the source: a JSON field, a Parquet column, or in a tar the extension of a member.
        type: an Arrow type's name, such as `int32`.
    """

    name: str
    field: str
    type: str = "string"

    @property
    def arrow_type(self) -> pa.DataType:
        """The Arrow type that `type` names."""
        return pa.type_for_alias(self.type)

    @classmethod
    def parse(cls, text: str, reserved: Iterable[str]) -> Column:
        """Read `name[=field][:type]`.

        Raises:
            ValueError: if the name is empty or one of `reserved` in any case, or the type is none of Arrow's.
        """
        head, _, type_name = text.partition(":")
        name, _, field = head.partition("=")
        column = cls(name, field or name, type_name or "string")
        if not name:
            raise ValueError(f"--columns {text!r} has no name; write name, name=field or name=field:type")
        if name.lower() in {r.lower() for r in reserved}:
            raise ValueError(
                f"--columns {text!r} is called like a column of ours; give it another name: my_{name}={column.field}"
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


def samples_schema(columns: Iterable[Column] = ()) -> pa.Schema:
    """The schema of the batches that every reader yields.

    `key` string, `row` int64 (absolute place in the shard), `image` binary (encoded bytes), `caption` string,
    `image_reject` and `caption_reject`, the user's columns, `metadata` string (JSON), IMAGE_URI string (of listings).
    """
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
        ]
    )
