"""The rows that a condition lets through, read by DuckDB from files on this machine in the query of the condition.

Columns that Arrow reads and hands to DuckDB give the same rows, but cost twice the seconds of a core. That way stays
for everything else: files elsewhere, types that DuckDB reads from Parquet otherwise than from Arrow, and parts with
which something is wrong, which it says in its own words.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence

import duckdb
import numpy as np
import pyarrow as pa

from clip_transforms import storage
from clip_transforms.parts.footers import part_uri, read_footer
from clip_transforms.select.candidates import Left
from clip_transforms.select.expression import Expression
from clip_transforms.select.fence import query_files, taxonomy_of, texts
from schemas.provenance import Footer

# Types that DuckDB reads from Parquet as from Arrow, and whose values it returns as they were.
_PLAIN = (pa.types.is_string, pa.types.is_boolean, pa.types.is_integer, pa.types.is_float32, pa.types.is_float64)
_PATTERN = set("*?[]{}")  # DuckDB takes a path with them for a pattern


def floats_of(schema: pa.Schema, names: Iterable[str]) -> tuple[str, ...] | None:
    """Return those of some columns that are floats; None if DuckDB must not read the files.

    Args:
        schema: all columns of the dataset.
        names: columns of the conditions.
    """
    kinds = {name: schema.field(name).type for name in names}
    kinds = {name: kind.value_type if pa.types.is_dictionary(kind) else kind for name, kind in kinds.items()}
    # SQL takes `Width` and `width` for one column, and DuckDB calls a file's number so.
    apart = {"file_index", *(name.lower() for name in schema.names)}
    if len(apart) <= len(schema.names) or not all(any(check(kind) for check in _PLAIN) for kind in kinds.values()):
        return None
    return tuple(name for name, kind in kinds.items() if pa.types.is_floating(kind))


def read_passed(
    dataset: str,
    parts: Sequence[tuple[str, str]],
    where: Expression,
    columns: Sequence[str],
    floats: Sequence[str],
    classes: Mapping[str, str],
) -> tuple[Left, pa.Array] | None:
    """Read the rows for which a condition is not false.

    Args:
        dataset: URI of the dataset.
        parts: (name, digest) of the parts.
        where: the condition.
        columns: columns to return.
        floats: columns that are floats; see `floats_of`.
        classes: taxonomy → what its labels are made with; see `check_labels`.
    Returns:
        The rows, without those for which it is false, and for each of them true or null. None if the parts must be
        read in the other way.
    """
    kinds = ["embeddings", *(f"labels/{taxonomy}" for taxonomy in classes)]
    paths = {kind: [storage.local_path(part_uri(dataset, kind, part)) or "" for part, _ in parts] for kind in kinds}
    if not all(path and not _PATTERN & set(path) for of_kind in paths.values() for path in of_kind):
        return None
    names = [name for name in columns if name != "shard"]  # as a text for each row it would be half of the work
    folders = [os.path.dirname(of_kind[0]) for of_kind in paths.values()]
    try:
        before = _stamps(paths)
        if (footers := _footers(dataset, parts, classes)) is None:
            return None
        found = query_files(_query(paths, where, names, floats), folders)
        if before != _stamps(paths):  # the footers might be those of other files
            return None
    except (OSError, duckdb.Error) as error:
        if isinstance(error, OSError) and storage.is_of_the_machine(error):
            raise
        return None
    bounds = np.searchsorted(found.column(0).to_numpy(), np.arange(len(parts) + 1))
    tables = {}
    for (part, _), footer, start, stop in zip(parts, footers, bounds, bounds[1:], strict=False):
        rows = found.slice(start, stop - start)
        values = dict(zip(names, rows.columns[2:], strict=True))
        shards = pa.DictionaryArray.from_arrays(pa.array(np.zeros(len(rows), np.int32)), [footer["shard"]])
        tables[part] = pa.table({name: values.get(name, shards) for name in columns})
    left = Left.all_of(tables)
    seen = np.array([footer["counts"]["rows"] for footer in footers])
    counts = {"seen": seen, "null": np.zeros_like(seen), "dropped.where": seen - left.counts["seen"]}
    return Left(tables, left.places, counts), found.column(1).combine_chunks()


def _stamps(paths: Mapping[str, Sequence[str]]) -> list[tuple[int, ...]]:
    """Return what changes whenever a file is replaced or written to."""
    infos = [os.stat(path) for of_kind in paths.values() for path in of_kind]
    return [(info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns) for info in infos]


def _footers(dataset: str, parts: Sequence[tuple[str, str]], classes: Mapping[str, str]) -> list[Footer] | None:
    """Return the footers of the embeddings; None if files do not belong together, or have changed."""
    found = []
    made_with = [digest.partition(" ")[0] for digest in classes.values()]
    for part, digest in parts:
        footer = read_footer(part_uri(dataset, "embeddings", part))
        labels = [read_footer(part_uri(dataset, f"labels/{taxonomy}", part)) or {} for taxonomy in classes]
        digests = [one.get("digest") for one in labels]
        if footer is None or {footer.get("digest"), *digests} != {digest} or "rows" not in footer["counts"]:
            return None
        if [one.get("taxonomy_digest") for one in labels] != made_with:
            return None
        found.append(footer)
    return found


def _query(paths: Mapping[str, Sequence[str]], where: Expression, columns: Sequence[str], floats: Sequence[str]) -> str:
    """Return the query: the number of a row's file, the condition, and the columns."""
    tables = {kind: f"t{number}" for number, kind in enumerate(paths)}
    files = [f"read_parquet({texts(paths[kind])}, hive_partitioning = false) {name}" for kind, name in tables.items()]
    apart = " OR ".join(f"t0.file_index IS DISTINCT FROM {name}.file_index" for name in tables.values())

    def column(name: str) -> str:
        taxonomy = taxonomy_of(name)
        if taxonomy and f"labels/{taxonomy}" in tables:
            return f"{tables[f'labels/{taxonomy}']}.{_quoted(name.rpartition('.')[2])}"
        return f"t0.{_quoted(name)}"

    def asked(name: str) -> str:  # as `Expression.evaluate` has it: NaN is null
        read = column(name)
        return f"CASE WHEN isnan({read}) THEN NULL ELSE {read} END" if name in floats else read

    structs: dict[str, list[str]] = {}
    for name in where.columns:
        if taxonomy := taxonomy_of(name):
            structs.setdefault(taxonomy, []).append(f"{_quoted(name.rpartition('.')[2])} := {asked(name)}")
    own = "_" * (1 + max(map(len, [*where.columns, *columns])))  # no name of a column
    inner = [
        f"t0.file_index AS {own}file",
        f"{apart} AS {own}apart",
        *(f"{asked(name)} AS {_quoted(name)}" for name in where.columns),
        *(f"struct_pack({', '.join(fields)}) AS {_quoted(taxonomy)}" for taxonomy, fields in structs.items()),
        *(f"{column(name)} AS {own}{number}" for number, name in enumerate(columns)),
    ]
    # The condition is one value here and no list of conditions: DuckDB must not check its parts one after the other,
    # since a row on which the second one fails could then go unnoticed.
    value = f"CASE WHEN {own}apart THEN error('files of other lengths') ELSE (\n{where.sql}\n) END"
    names = "".join(f", {own}{number}" for number in range(len(columns)))
    return (
        f"SELECT {own}file, {own}value{names} FROM (SELECT *, {value} AS {own}value FROM "
        f"(SELECT {', '.join(inner)} FROM {' POSITIONAL JOIN '.join(files)})) WHERE {own}value IS DISTINCT FROM false"
    )


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
