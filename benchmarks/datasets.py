"""Write datasets without a model, for benchmarks and tests: the files that `embed` would have written."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from clip_transforms.clip.taxonomy import Taxonomy
from clip_transforms.parts.fingerprint import fingerprint
from clip_transforms.parts.manifest import make_folders, write_dataset
from clip_transforms.parts.writer import PartSettings, UnitWriter
from clip_transforms.run.settings import Settings
from schemas.embeddings import EMBEDDINGS, embeddings_schema
from schemas.labels import labels_schema
from schemas.rejects import rejects_schema
from schemas.samples import MODALITIES, Column

SETTINGS = {"model": "0" * 64, "activation": "quick_gelu", "embedding_dtype": "float32"}


def write_rows(
    folder: str | os.PathLike,
    parts: Sequence[Mapping[str, Any]],
    labels: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
    columns: Sequence[str] = (),
    embedding_dtype: str = "float32",
    classes: Sequence[str] = ("cat", "dog"),
) -> str:
    """Write a dataset, complete with `_SUCCESS`, and return its folder.

    Args:
        folder: a new folder, or one of an earlier call, whose parts of the same numbers are replaced.
        parts: for each part its columns by name; what is left out is null. `key`, `shard` (`/shards/0.tar` and so on)
            and `row` have values of their own if they are left out. Embeddings are arrays [n, d] or lists with None.
        labels: taxonomy → for each part its `label`, `probability` and so on.
        columns: the user's columns, written as for `--columns`.
        embedding_dtype: `float32` or `float16`.
        classes: names of the classes of each taxonomy.
    """
    folder = os.fspath(folder)
    taxonomies = {name: Taxonomy.from_json(name, {"classes": list(classes)}).digest for name in labels or {}}
    settings = {**SETTINGS, "embedding_dtype": embedding_dtype, "columns": str(list(columns))}
    scratch = os.path.join(folder, "_temporary", "made")
    make_folders(folder, [f"labels/{name}" for name in taxonomies])
    os.makedirs(scratch, exist_ok=True)
    write_dataset(folder, settings, "none", taxonomies, scratch)
    schema = embeddings_schema(embedding_dtype, [Column.parse(text, ()) for text in columns])
    for number, part in enumerate(parts):
        shard = part.get("shard", f"/shards/{number}.tar")
        rows = _rows(part, shard, schema)
        d = next((len(v) for name in EMBEDDINGS for v in rows.column(name).to_pylist()[:1] if v is not None), 4)
        footer = {"fingerprint": fingerprint(settings), "provenance": {"embed_dim": part.get("d", d)}}
        label_footers = {
            name: {"taxonomy": name, "taxonomy_digest": digest, "top_labels": Settings.top_labels}
            for name, digest in taxonomies.items()
        }
        made = PartSettings(folder, scratch, schema, footer, label_footers)
        named = {name: _rows(of[number], shard, labels_schema(), rows) for name, of in (labels or {}).items()}
        with UnitWriter(made, f"part-{number:05d}", {"shard": shard, "stamp": "1-1"}) as writer:
            absent = {m: rows.column(f"{m}_embedding").null_count for m in MODALITIES}
            writer.write(rows, named, pa.RecordBatch.from_pylist([], rejects_schema()), absent)
            writer.commit(rows.num_rows, {})
    os.rmdir(scratch)
    os.rmdir(os.path.dirname(scratch))
    with open(os.path.join(folder, "_SUCCESS"), "w"):
        return folder


def _rows(
    columns: Mapping[str, Any], shard: str, schema: pa.Schema, like: pa.RecordBatch | None = None
) -> pa.RecordBatch:
    """Return the rows of a part in a schema."""
    lengths = [len(values) for name, values in columns.items() if name in schema.names and name != "shard"]
    n = like.num_rows if like is not None else lengths[0]
    made: dict[str, Any] = {"key": [f"{i:06d}" for i in range(n)], "row": np.arange(n)}
    if like is not None:
        made = {name: like.column(name) for name in ("key", "row")}
    made |= {"shard": pa.DictionaryArray.from_arrays(pa.array(np.zeros(n), pa.int32()), [shard])}
    made |= {name: values for name, values in columns.items() if name in schema.names and name != "shard"}
    return pa.RecordBatch.from_arrays([_array(made.get(f.name), f.type, n) for f in schema], schema=schema)


def _array(values: Any, type_: pa.DataType, n: int) -> pa.Array:
    if values is None:
        return pa.nulls(n, type_)
    if isinstance(values, pa.Array):
        return values if values.type == type_ else values.cast(type_)
    if isinstance(values, np.ndarray) and values.ndim == 2:
        flat = pa.array(values.reshape(-1).astype(type_.value_type.to_pandas_dtype()))
        return pa.ListArray.from_arrays(np.arange(0, flat.__len__() + 1, values.shape[1], dtype=np.int32), flat)
    if isinstance(values, np.ndarray):
        return pa.array(values, type_, from_pandas=False)
    if pa.types.is_dictionary(type_):
        return pa.array(values, type_.value_type).dictionary_encode().cast(type_)
    return pa.array(values, type_)
