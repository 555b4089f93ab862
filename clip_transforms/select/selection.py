"""Selections: some rows of a dataset, named part by part. How they are opened, applied to a part, and written."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from clip_transforms import storage
from clip_transforms.parts.counts import counted
from clip_transforms.parts.dataset import Dataset
from clip_transforms.parts.footers import part_uri, read_digests, read_footer
from clip_transforms.parts.reader import open_part
from clip_transforms.select.row_files import rows_by_part
from schemas.provenance import Footer, encode_footer
from schemas.selection import selection_schema

RECORD, PARTS = "selection.json", "parts"


class SelectionError(ValueError):
    """A selection that cannot be used for a dataset, in one sentence."""


@dataclasses.dataclass(frozen=True)
class Selection:
    """The rows that all of some selections keep; all rows if there are none. `Selection.open` makes one.

    Attributes:
        places: what was given: folders of selections, and files.
        folders: URIs of folders with a part for each part of the dataset.
        files: for each file, part → places in the shard of the rows that it names; only parts of which it names some.
        settled_files: URIs of the folders that `settled` wrote for the files.
        identity: what decides the rows, as JSON values.
    """

    places: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()
    files: tuple[Mapping[str, np.ndarray], ...] = ()
    settled_files: tuple[str, ...] = ()
    identity: tuple[Mapping[str, str], ...] = ()

    @classmethod
    def open(cls, dataset: Dataset, places: storage.Places = ()) -> Selection:
        """Open selections of a dataset. With files, the keys of the parts that they name are read here.

        Args:
            dataset: the dataset.
            places: folders that `filter` or `deduplicate` wrote; Parquet or CSV files with the columns `shard` and
                `row`; text files with a key a line. One or several, whose intersection is meant.
        Raises:
            SelectionError: if one is no selection, is not complete, was made from other parts than the dataset has now,
                or names rows that the dataset does not have.
        """
        uris = [storage.normalise(uri) for uri in storage.as_uris(places, "selection")] if places else []
        folders, files, identity = [], [], []
        for uri in uris:
            if storage.is_folder(uri):
                folders.append(uri)
                identity.append(_check_folder(uri, dataset))
            elif storage.exists(uri):
                files.append(rows_by_part(uri, dataset))
                identity.append({"selection": uri, "sha256": storage.sha256(uri)})
            else:
                raise SelectionError(f"--selection {uri} does not exist; give a folder that filter wrote, or a file")
        return cls(tuple(uris), tuple(folders), tuple(files), identity=tuple(identity))

    def most_rows(self, rows: int) -> int:
        """Return a bound of the number of rows that are selected, before `settled`.

        Args:
            rows: number of rows of the dataset.
        """
        kept = [json.loads(storage.read_bytes(storage.join(uri, RECORD)))["counts"]["kept"] for uri in self.folders]
        return min([rows, *kept, *(sum(map(len, file.values())) for file in self.files)])

    def settled(self, scratch: str) -> Selection:
        """Write what files name below the run's folder, so that the selection is small and can be sent to workers."""
        folders = []
        for number, rows in enumerate(self.files):
            folder = storage.join(scratch, f"selection-{number}")
            storage.make_folder(storage.join(folder, PARTS))
            for part, places in rows.items():
                sink = io.BytesIO()
                pq.write_table(pa.table({"row": places}), sink)
                storage.write_bytes(part_uri(folder, PARTS, part), sink.getvalue(), scratch)
            folders.append(folder)
        return dataclasses.replace(self, settled_files=tuple(folders), files=())

    def mask(self, part: str, rows: pa.ChunkedArray) -> np.ndarray:
        """Say which rows of a part are in the selection.

        Args:
            part: name of the part.
            rows: int64 [n], the column `row` of the part. All rows of a part are of one shard.
        Returns:
            bool [n].
        """
        kept = np.ones(len(rows), bool)
        for file in self.files:
            kept &= np.isin(rows.to_numpy(), file.get(part, ()))
        for folder in self.folders:
            kept &= _named(rows, part_uri(folder, PARTS, part))
        for folder in self.settled_files:
            uri = part_uri(folder, PARTS, part)
            kept &= _named(rows, uri) if storage.exists(uri) else False
        return kept


def _named(rows: pa.ChunkedArray, uri: str) -> np.ndarray:
    """Say which rows a part of a selection names."""
    try:
        with open_part(uri) as file:
            named = pq.ParquetFile(file).read(["row"], use_threads=False).column("row").cast(pa.int64())
    except (OSError, KeyError, pa.ArrowException) as error:
        if storage.is_of_the_machine(error):
            raise
        state = "is gone" if isinstance(error, FileNotFoundError) else f"is damaged ({' '.join(str(error).split())})"
        raise SelectionError(f"{uri} {state}; run the command that made this --selection again") from error
    found = pc.is_in(rows, value_set=named.combine_chunks()).to_numpy()
    if np.count_nonzero(found) != len(named):
        raise SelectionError(f"{uri} names rows that the dataset does not have; make this --selection again")
    return found


def _check_folder(uri: str, dataset: Dataset) -> dict[str, str]:
    """Refuse a folder that is no complete selection of this dataset as it is now; what identifies it."""
    record = storage.join(uri, RECORD)
    if not storage.exists(storage.join(uri, PARTS)):
        raise SelectionError(
            f"--selection {uri} is no selection: it has no {PARTS}/; give a folder that filter or deduplicate wrote"
        )
    if not storage.exists(storage.join(uri, "_SUCCESS")):
        raise SelectionError(f"--selection {uri} is not complete; run the command that made it again")
    try:
        content = json.loads(storage.read_bytes(record))
        counts_of = content["counts"]["kept"]
    except (FileNotFoundError, ValueError, RecursionError, TypeError, KeyError):
        counts_of = None
    if not isinstance(counts_of, int):
        raise SelectionError(f"{record} is gone or damaged; run the command that made --selection {uri} again")
    if content.get("fingerprint") != dataset.fingerprint:
        raise SelectionError(
            f"--selection {uri} is of another dataset, {content.get('dataset')}; make one of {dataset.uri}"
        )
    found = read_digests(uri, PARTS, dataset.parts)
    changed = [part for part, digest in dataset.digests.items() if found.get(part) != digest]
    if changed:
        raise SelectionError(
            f"--selection {uri} was made before {dataset.uri} changed: {counted(len(changed), 'part')} of it "
            f"{'is' if len(changed) == 1 else 'are'} not the same, {changed[0]} among them; make the selection again"
        )
    return {"selection": uri, "sha256": storage.sha256(record)}


def committed_counts(output: str, part: str, digest: str) -> dict[str, int] | None:
    """Return the counts of a selection's part that is there already; None if it must be written.

    Args:
        output: URI of the selection.
        part: name of the part.
        digest: digest of the dataset's part.
    """
    footer = read_footer(part_uri(output, PARTS, part))
    return footer["counts"] if footer and footer.get("digest") == digest else None


def write_parts(output: str, parts: Iterable[tuple[str, pa.Table, Footer]], scratch: str) -> None:
    """Write some parts of a selection, each as a whole.

    Args:
        output: URI of the selection.
        parts: for each its name; the kept rows with `key`, `shard`, `row` and, where they were ranked, `by`; and
            `fingerprint` and `digest` of the dataset's part, and `counts`.
        scratch: URI of the run's temporary folder.
    """
    files = ((part_uri(output, PARTS, part), _encoded(kept, footer)) for part, kept, footer in parts)
    storage.write_files(files, scratch)


def _encoded(kept: pa.Table, footer: Footer) -> memoryview:
    """Return the bytes of a part."""
    schema = selection_schema(kept.schema.field("by").type if "by" in kept.column_names else None)
    sink = pa.BufferOutputStream()
    # As in the parts of a dataset; see clip_transforms/parts/part_file.py. Only keys become smaller by compression.
    encodings = {"use_dictionary": ["shard"], "column_encoding": {"row": "DELTA_BINARY_PACKED"}}
    with pq.ParquetWriter(sink, schema, compression={"key": "zstd"}, write_statistics=False, **encodings) as writer:
        if kept.num_rows:  # some readers fail on an empty row group
            writer.write_table(kept.cast(schema))
        writer.add_key_value_metadata(encode_footer(footer))
    return memoryview(sink.getvalue())


def record_of(dataset: str, fingerprint: str, made_by: Mapping[str, Any], counts: Mapping[str, int]) -> dict[str, Any]:
    """Return the content of `selection.json`.

    Args:
        dataset: URI of the dataset.
        fingerprint: fingerprint of the dataset.
        made_by: the verb and its settings.
        counts: the sum of the counts of all parts: `seen`, `kept`, `null` and `dropped.<reason>`.
    Raises:
        RuntimeError: if rows are missing from the counts.
    """
    dropped = {key.removeprefix("dropped."): n for key, n in sorted(counts.items()) if key.startswith("dropped.")}
    seen, kept, null = (counts.get(name, 0) for name in ("seen", "kept", "null"))
    if seen != kept + null + sum(dropped.values()):
        raise RuntimeError(f"the counts do not add up: {seen} rows seen, {kept} kept, {null} null, dropped {dropped}")
    summed = {"seen": seen, "kept": kept, "dropped": dropped, "null": null}
    return {"dataset": dataset, "fingerprint": fingerprint, "made_by": dict(made_by), "counts": summed}
