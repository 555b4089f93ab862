"""Everything that a dataset knows of one sample."""

from __future__ import annotations

import datetime
import math
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clip_transforms.browsing.commands import sample_name
from clip_transforms.browsing.loaded import Loaded
from clip_transforms.browsing.question import QuestionError
from clip_transforms.parts.counts import takes_all_captions
from clip_transforms.parts.reader import DatasetError, read_rejects, read_table
from clip_transforms.select.fence import taxonomy_of
from clip_transforms.select.filtering import columns_of
from clip_transforms.shards.batches import text_of
from clip_transforms.shards.pictures_again import file_of
from schemas.embeddings import EMBEDDINGS

_LONGEST = 20_000  # characters of a value
_MOST_ITEMS = 100


def known_of(loaded: Loaded, place: int) -> dict[str, Any]:
    """Return the columns of a row, its labels, its captions and its rejects, as JSON values.

    Raises:
        QuestionError: if its part is gone or has changed.
    """
    plan, part_number = loaded.plan, loaded.part_of(place)
    part, inside = loaded.parts[part_number[0]], part_number[1]
    uri, digest = plan.dataset.uri, plan.dataset.digests[part]
    taxonomies = list(plan.searched.classes)
    names = [name for name in columns_of(plan.dataset).names if name not in EMBEDDINGS]
    names = [name for name in names if not taxonomy_of(name) or taxonomy_of(name) in taxonomies]
    try:
        table = read_table(uri, part, names, taxonomies, made_from={"embeddings": digest})
        row = table.slice(inside, 1).to_pylist()[0]
        rejects = _of_row(read_rejects(uri, part), row["row"])
        captions = []
        if takes_all_captions(plan.dataset.counts):
            captions = _of_row(read_table(uri, part, ["row", "caption", "clip_score"], rows="captions"), row["row"])
    except DatasetError as error:
        raise QuestionError(str(error)) from error
    labels = [
        {"taxonomy": taxonomy} | {field: _json(row.pop(f"{taxonomy}.{field}")) for field in fields}
        for taxonomy in taxonomies
        if (fields := [name.rpartition(".")[2] for name in names if taxonomy_of(name) == taxonomy])
    ]
    return {
        "id": place,
        "name": sample_name(loaded, place),
        "part": part,
        "file": text_of(file_of(part, row["shard"], row["key"])),
        "columns": {name: _json(value) for name, value in row.items()},
        "labels": labels,
        "captions": [{"caption": _json(one["caption"]), "clip_score": _json(one["clip_score"])} for one in captions],
        "rejects": [{name: _json(one[name]) for name in ("modality", "reason", "message")} for one in rejects],
        "searchable": bool(loaded.vectors.there[place]),
    }


def _of_row(table: pa.Table, row: int) -> list[dict[str, Any]]:
    return table.filter(pc.equal(table.column("row"), row)).slice(0, _MOST_ITEMS).to_pylist()


def _json(value: Any) -> Any:
    """Return a value of Arrow as JSON has it; long ones are cut."""
    if isinstance(value, str):
        return value if len(value) <= _LONGEST else f"{value[:_LONGEST]}…"
    if isinstance(value, float):
        return float(np.format_float_positional(np.float32(value), unique=True)) if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(name): _json(one) for name, one in list(value.items())[:_MOST_ITEMS]}
    if isinstance(value, (list, tuple)):
        return [_json(one) for one in value[:_MOST_ITEMS]]
    if isinstance(value, (bytes, bytearray)):
        return f"{len(value):,} bytes"
    if isinstance(value, (datetime.date, datetime.time, datetime.timedelta)):
        return str(value)
    return value if value is None or isinstance(value, (bool, int)) else str(value)
