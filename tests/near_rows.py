"""Made datasets with near duplicates, and by brute force what `deduplicate` must find in them."""

import math

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import rows_of

from benchmarks.datasets import write_rows

D = 16


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def crowded(n, seed, spread=0.6):
    """Vectors of which every third has copies at cosines around 0.95."""
    rng = np.random.default_rng(seed)
    rows = unit(rng.normal(size=(n, D)))
    copies = n // 3
    rows[:copies] = unit(rows[n - copies :] + unit(rng.normal(size=(copies, D))) * rng.uniform(0, spread, (copies, 1)))
    return rows[rng.permutation(n)]


def columns_of(n, seed):
    """The columns that decide, with nulls and NaN among them."""
    rng = np.random.default_rng(seed)
    scores = [None if r < 0.1 else math.nan if r < 0.2 else round(float(r), 1) for r in rng.random(n)]
    sides = [None if r < 0.1 else int(9 * r) + 1 for r in rng.random(n)]
    hashes = [None if r < 0.1 else f"{int(r * 3 * n):064x}" for r in rng.random(n)]
    return {"clip_score": scores, "width": sides, "height": sides, "image_sha256": hashes}


def make_dataset(folder, sizes, dtype="float32", nulls=0.1):
    """Parts of these sizes; some rows have no image embedding, others no caption embedding."""
    n = sum(sizes)
    images, captions, columns = crowded(n, 1), crowded(n, 2), columns_of(n, 3)
    rng = np.random.default_rng(4)
    columns["image_embedding"] = [
        None if r < nulls else v.astype(dtype) for r, v in zip(rng.random(n), images, strict=True)
    ]
    captions[: n // 2] = images[: n // 2]  # pairs, too, have near duplicates
    columns["caption_embedding"] = [
        None if r < nulls else v.astype(dtype) for r, v in zip(rng.random(n), captions, strict=True)
    ]
    for i in range(n):
        if columns["image_embedding"][i] is None and columns["caption_embedding"][i] is None:
            columns["caption_embedding"][i] = captions[i].astype(dtype)
    ends = np.cumsum([0, *sizes])
    parts = [{k: v[a:b] for k, v in columns.items()} for a, b in zip(ends[:-1], ends[1:], strict=True)]
    return write_rows(folder, [{**part, "d": D} for part in parts], embedding_dtype=dtype)


@pytest.fixture(scope="module", name="small")
def small_dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small") / "out"
    make_dataset(folder, [100, 0, 37, 213])
    return folder


def stored(dataset):
    """The rows of a dataset in its order."""
    paths = sorted((dataset / "embeddings").glob("*.parquet"))
    return [row for path in paths for row in pq.ParquetFile(path).read().to_pylist()]


def near(rows, names, threshold):
    """Brute force in float64: pairs of places, none of a row whose embedding is missing."""
    vectors = {}
    for name in names:
        wide = np.array([row[name] if row[name] is not None else [np.nan] * D for row in rows], np.float64)
        vectors[name] = wide / np.linalg.norm(wide, axis=1, keepdims=True)
    for first in range(0, len(rows), 500):
        block = [(v[first : first + 500] @ v.T).astype(np.float32) >= np.float32(threshold) for v in vectors.values()]
        a, b = np.nonzero(np.all(block, axis=0))
        yield from ((i, j) for i, j in zip((a + first).tolist(), b.tolist(), strict=True) if i < j)


def components(pairs):
    """Groups of places, each sorted; rows that are in no pair are left out."""
    neighbours = {}
    for i, j in pairs:
        neighbours.setdefault(i, set()).add(j)
        neighbours.setdefault(j, set()).add(i)
    seen, groups = set(), []
    for start in sorted(neighbours):
        group, waiting = set(), [start]
        while waiting:
            if (here := waiting.pop()) not in seen:
                seen.add(here)
                group.add(here)
                waiting += neighbours[here]
        groups += [sorted(group)] if group else []
    return groups


def place_of(row, keep):
    """What sorts the one that stays first."""
    score = -math.inf if row["clip_score"] is None or math.isnan(row["clip_score"]) else row["clip_score"]
    size = -1 if row["width"] is None else row["width"] * row["height"]
    ranks = {"score": (-score, -size), "pixels": (-size, -score), "first": ()}[keep]
    return (*ranks, row["shard"], row["row"])


def name_of(row):
    return row["shard"], row["row"]


def kept_of(output):
    return [name_of(row) for row in rows_of(output, "parts")]


def groups_of(output):
    """Groups of names, the kept one first, and the similarity of every row."""
    groups = {}
    for row in rows_of(output, "groups"):
        groups.setdefault(row["group"], []).append(row)
    found = [[name_of(r) for r in sorted(group, key=lambda r: not r["kept"])] for group in groups.values()]
    return sorted(found), {name_of(row): row["similarity"] for group in groups.values() for row in group}


def written(output):
    paths = (path for path in output.rglob("*") if path.is_file())
    return {str(path.relative_to(output)): path.read_bytes() for path in paths}
