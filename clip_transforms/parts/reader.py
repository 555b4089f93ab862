"""The rows of one part, with their labels beside them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import IO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from clip_transforms import storage
from clip_transforms.parts.footers import part_uri, read_footer
from clip_transforms.parts.list_pages import as_array, read_embeddings
from schemas.embeddings import EMBEDDINGS
from schemas.provenance import Footer, decode_footer

ROWS = ("embeddings", "captions")  # kinds of parts whose rows can be read
KEYS = ("key", "shard", "row")  # the columns that embeddings and labels have in common


class DatasetError(ValueError):
    """A dataset that cannot be read as one, in one sentence."""


def known_rows(rows: str) -> str:
    """Return `rows` if it is one of ROWS.

    Raises:
        ValueError: if it is not.
    """
    if rows not in ROWS:
        raise ValueError(f"rows is {rows!r}, but it must be {' or '.join(ROWS)}")
    return rows


def read_table(
    output: str,
    part: str,
    columns: Sequence[str] | None = None,
    taxonomies: Sequence[str] = (),
    rows: str = "embeddings",
    *,
    made_from: Mapping[str, str] | None = None,
) -> pa.Table:
    """Read the rows of one part, with labels beside them. Of the files only the columns asked for are read.

    Args:
        output: URI of the dataset.
        part: name of the part.
        columns: columns of the rows, and of the labels as `<taxonomy>.label`; all by default.
        taxonomies: taxonomies whose labels are joined, as columns `<taxonomy>.label`, `.probability`, `.similarity`,
            `.margin` and `.top`.
        rows: one of ROWS: `embeddings`, a row per sample, or `captions`, a row per caption with its sample's labels.
        made_from: kind of file → digest that was seen in it earlier: of `embeddings` that of the rows, of
            `labels/<taxonomy>` that of the classes, and perhaps a space and more.
    Returns:
        The rows in the order of the part; embeddings are FixedSizeList of d float32 or float16.
    Raises:
        DatasetError: if files of the part do not belong together or have changed, or a column does not exist.
    """
    with contextlib.ExitStack() as stack:
        kinds = [rows, *(f"labels/{taxonomy}" for taxonomy in taxonomies)]
        opened = [_open_part(stack, output, kind, part) for kind in kinds]
        files = [file for file, _ in opened]
        footers = [_footer(file, output, kind, part) for kind, file in zip(kinds, files, strict=True)]
        marker = footers[0] if rows == "embeddings" else read_footer(part_uri(output, "embeddings", part)) or {}
        for kind, footer in zip(kinds, footers, strict=True):
            if footer.get("digest") != marker.get("digest"):
                raise DatasetError(
                    f"the {kind.partition('/')[0]} of {part} in {output} were made from other embeddings; run the same "
                    "command again"
                )
        for kind, footer in zip(kinds, footers, strict=True):
            digest = str(footer.get("digest" if kind == rows else "taxonomy_digest", ""))
            if made_from and digest != made_from.get(kind, digest).partition(" ")[0]:
                raise DatasetError(
                    f"{part_uri(output, kind, part)} was replaced while this command read the dataset; give the "
                    "command again when nothing writes to the dataset"
                )
        prefixes = ["", *(f"{taxonomy}." for taxonomy in taxonomies)]
        offered = [
            {f"{prefix}{name}": name for name in file.schema_arrow.names if not (prefix and name in KEYS)}
            for prefix, file in zip(prefixes, files, strict=True)
        ]
        known = [name for names in offered for name in names]
        wanted = known if columns is None else list(columns)
        if twice := [name for name in wanted if known.count(name) > 1]:
            raise DatasetError(
                f"{output} has the column {twice[0]} twice, of its own and of a taxonomy; ask for other columns, or "
                "label it under another name"
            )
        if unknown := [name for name in wanted if name not in known]:
            raise DatasetError(f"{output} has no column {unknown[0]}; it has {', '.join(known)}")
        table: dict[str, pa.ChunkedArray] = {}
        d = int(footers[0].get("provenance", {}).get("embed_dim", 0))
        for (file, data), names in zip(opened, offered, strict=True):
            with as_sentence(output, part):
                found = _read(file, [names[name] for name in wanted if name in names and name not in EMBEDDINGS])
                if file is not files[0] and rows != "embeddings":  # the labels have a row per sample
                    found = found.take(pc.index_in(_read(files[0], ["row"])["row"], _read(file, ["row"])["row"]))
                for name in (name for name in wanted if name in names):
                    vectors = name in EMBEDDINGS
                    table[name] = _embeddings(file, data, name, d) if vectors else found.column(names[name])
        return pa.table({name: table[name] for name in wanted})


def read_rejects(output: str, part: str) -> pa.Table:
    """Read the rejects of one part.

    Raises:
        DatasetError: if the file is gone or damaged.
    """
    with contextlib.ExitStack() as stack:
        file, _ = _open_part(stack, output, "rejects", part)
        with as_sentence(output, part):
            return _read(file, file.schema_arrow.names)


def _open_part(stack: contextlib.ExitStack, output: str, kind: str, part: str) -> tuple[pq.ParquetFile, IO[bytes]]:
    with as_sentence(output, part):
        uri = part_uri(output, kind, part)
        data = stack.enter_context(open_part(uri))
        # Arrow would read ahead on other threads: on a disk, handing over costs more than the reading.
        return pq.ParquetFile(data, pre_buffer=not storage.is_local(uri)), data


def open_part(uri: str) -> IO[bytes]:
    """Open a part for Arrow: on this machine as a file of Arrow's own, which needs no lock of the interpreter's."""
    path = storage.local_path(uri)
    return storage.open_input(uri) if path is None else pa.OSFile(path)


@contextlib.contextmanager
def as_sentence(output: str, part: str) -> Iterator[None]:
    """Turn an error of a file that is gone or damaged into one that says what to do."""
    try:
        yield
    except DatasetError:
        raise
    except (OSError, ValueError, pa.ArrowException) as error:
        if storage.is_of_the_machine(error):
            raise
        state = "is gone" if isinstance(error, FileNotFoundError) else f"is damaged ({error})"
        raise DatasetError(
            f"a file of the part {part} in {output} {state}; remove what is left of this part and run the same command "
            "that made it again"
        ) from error


def _read(file: pq.ParquetFile, columns: Sequence[str]) -> pa.Table:
    # Not pq.read_table: its thread pool sometimes aborts the process at exit after it has read a Python file.
    return file.read(columns, use_threads=False)


def _footer(file: pq.ParquetFile, output: str, kind: str, part: str) -> Footer:
    return decode_footer(file.metadata.metadata, part_uri(output, kind, part)) or {}


def _embeddings(file: pq.ParquetFile, data: IO[bytes], name: str, d: int) -> pa.ChunkedArray:
    """Read embeddings as FixedSizeList of d values, which reads as a matrix."""
    groups = range(file.num_row_groups)
    arrays = [as_array(read_embeddings(file, data, group, name, d)) for group in groups]
    return pa.chunked_array(arrays, pa.list_(file.schema_arrow.field(name).type.value_type, d))
