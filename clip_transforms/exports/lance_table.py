"""Write rows as a Lance dataset, which LanceDB opens as the table `embeddings`."""

from __future__ import annotations

import contextlib
import os
import posixpath
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from clip_transforms import storage
from clip_transforms.exports.extras import import_extra
from clip_transforms.exports.rows import LABEL_FIELDS, ExportRows
from clip_transforms.exports.vectors import distinct

FOLDER, TABLE = "lance", "embeddings.lance"
_RESERVED = ("_rowid", "_rowaddr")  # names that Lance refuses


def write_lance(rows: ExportRows, parts: Sequence[str], columns: Sequence[str], places: tuple[str, str]) -> None:
    """Write `embeddings.lance`: all columns, embeddings as FixedSizeList, and a struct of labels for each taxonomy.

    Lance names its files at random, so the same rows do not give the same bytes.

    Args:
        rows: the rows that are taken.
        parts: names of the parts; at least one, of which none of the rows need be taken.
        columns: columns of the embeddings.
        places: URI of the export, and of the run's temporary folder.
    """
    lance: Any = import_extra("lance")
    output, scratch = places
    folder = tempfile.mkdtemp(prefix="lance-", dir=storage.normalise(scratch) if storage.is_local(scratch) else None)
    try:
        first = _structs(rows, rows.table(parts[0], columns, with_labels=True))

        def batches() -> Iterator[pa.RecordBatch]:
            yield from first.to_batches()
            for part in parts[1:]:
                table = rows.table(part, columns, with_labels=True)
                yield from _structs(rows, table).cast(first.schema).to_batches()

        local = os.path.join(folder, TABLE)
        with _naming(local):
            lance.write_dataset(pa.RecordBatchReader.from_batches(first.schema, batches()), local)
        _commit(local, storage.join(output, FOLDER, TABLE))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _naming(path: str) -> Iterator[None]:
    """Make an error of the disk name what was written: Lance names the line of its own source."""
    try:
        yield
    except OSError as error:
        found = re.search(r"\(os error (\d+)\)", str(error))
        if error.errno is not None or found is None:
            raise
        raise OSError(int(found[1]), os.strerror(int(found[1])), path) from error


def _structs(rows: ExportRows, table: pa.Table) -> pa.Table:
    """Put the labels of each taxonomy into a struct, since Lance takes no names with dots; other dots become `_`."""
    labels = {f"{taxonomy}.{field}" for taxonomy in rows.taxonomies for field in LABEL_FIELDS}
    own = [name for name in table.column_names if name not in labels]
    usual = [name for name in own if "." not in name and name not in _RESERVED]
    odd = [name for name in own if name not in usual]
    free = distinct([name.replace(".", "_") for name in odd], {*usual, *rows.taxonomies, *_RESERVED})
    renamed = dict(zip(odd, free, strict=True))
    found = {renamed.get(name, name): table.column(name) for name in own}
    for taxonomy in rows.taxonomies:
        fields = [table.column(f"{taxonomy}.{field}").combine_chunks() for field in LABEL_FIELDS]
        found[taxonomy] = pa.StructArray.from_arrays([_plain(field) for field in fields], LABEL_FIELDS)
    return pa.table({name: _plain(column) for name, column in found.items()})


def _plain(column: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column


def _commit(local: str, uri: str) -> None:
    """Let the files appear; the manifest, which makes a dataset of them, comes last."""
    storage.remove(uri)
    files = sorted(path for path in Path(local).rglob("*") if path.is_file())
    for path in sorted(files, key=lambda path: path.parent.name == "_versions"):
        place = storage.join(uri, *path.relative_to(local).parts)
        storage.make_folder(posixpath.dirname(place))
        storage.commit_file(str(path), place)
