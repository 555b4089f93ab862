"""Datasets to search, queries, and what a search must find."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import make_tar, pair, write_tar

from benchmarks.datasets import write_rows
from clip_transforms import Dataset, clip, embed_shards

D = 16
SIZES = [700, 0, 333, 40]


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def vectors(n, seed, dtype="float32", nulls=0.1):
    """Vectors with copies of each other and nulls among them."""
    rng = np.random.default_rng(seed)
    made = unit(rng.normal(size=(n, D))).astype(dtype)
    made[2::5] = made[rng.integers(0, n, len(made[2::5]))]
    return [None if r < nulls else v for r, v in zip(rng.random(n), made, strict=True)]


def make(folder, dtype="float32"):
    n = sum(SIZES)
    columns = {"image_embedding": vectors(n, 1, dtype), "caption_embedding": vectors(n, 2, dtype)}
    for i in range(n):
        if columns["image_embedding"][i] is None and columns["caption_embedding"][i] is None:
            columns["image_embedding"][i] = columns["image_embedding"][0]
    columns |= {"caption": [f"caption {i}" for i in range(n)], "width": [i % 7 for i in range(n)]}
    ends = np.cumsum([0, *SIZES])
    parts = [{k: v[a:b] for k, v in columns.items()} for a, b in zip(ends[:-1], ends[1:], strict=True)]
    labels = [{"label": ["cat", "dog"] * (s // 2) + ["cat"] * (s % 2), "probability": [0.5] * s} for s in SIZES]
    # The order of the shards is not that of the parts, and two parts are of one shard.
    shards = ["/shards/b.tar", "/shards/c.tar", "/shards/a.parquet", "/shards/a.parquet"]
    for part, shard in zip(parts, shards, strict=True):
        part |= {"shard": shard, "d": D}
    parts[3]["row"] = np.arange(SIZES[3]) + SIZES[2]
    return write_rows(folder, parts, {"animals": labels}, embedding_dtype=dtype)


@pytest.fixture(name="single", scope="module")
def made_single(tmp_path_factory):
    return make(tmp_path_factory.mktemp("single") / "out")


def plain(dataset, queries, column="image_embedding", k=10, keep=lambda row: True):
    """What a search must find: for each query (shard, row, similarity) of its best rows, by one NumPy product."""
    columns = ["shard", "row", "width", column]
    rows = [row for row in Dataset.open(dataset).to_table(columns).to_pylist() if row[column] is not None and keep(row)]
    rows.sort(key=lambda row: (row["shard"], row["row"]))
    stored = np.array([row[column] for row in rows], np.float64).reshape(-1, D)
    products = (np.asarray(queries, np.float64) @ stored.T).astype(np.float32)
    best = np.argsort(-products, axis=1, kind="stable")[:, :k]
    names = [(row["shard"], row["row"]) for row in rows]
    found = zip(best.tolist(), np.take_along_axis(products, best, axis=1).tolist(), strict=True)
    return [[(*names[i], value) for i, value in zip(*of, strict=True)] for of in found]


def found(table):
    """The rows of results in the form of `plain`."""
    columns = (table[name].to_pylist() for name in ("shard", "row", "similarity"))
    rows, ranks = list(zip(*columns, strict=True)), table["rank"].to_numpy()
    edges = np.append(np.flatnonzero(ranks == 1), len(rows)).tolist()
    assert ranks.tolist() == [rank + 1 for a, b in zip(edges, edges[1:], strict=False) for rank in range(b - a)]
    return [rows[a:b] for a, b in zip(edges, edges[1:], strict=False)]


def query_file(folder, count, seed=5):
    queries = unit(np.random.default_rng(seed).normal(size=(count, D)))
    pq.write_table(pa.table({"embedding": list(queries)}), path := folder / "queries.parquet")
    return path, queries


@pytest.fixture(name="pictures", scope="module")
def made_pictures(tmp_path_factory, tiny_checkpoint):
    """A real dataset of two tars that share keys, made by the tiny model."""
    folder = tmp_path_factory.mktemp("pictures")
    make_tar(folder / "a.tar", 6)
    samples = [*pair("000001", 41), *pair("only text", 42)[1:], *pair("only image", 43, caption=None)]
    write_tar(folder / "b.tar", samples)
    (folder / "animals.txt").write_text("cat\ndog\n")
    spec = clip.ClipSpec(tiny_checkpoint, precision="fp32")
    embed_shards([folder / "a.tar", folder / "b.tar"], folder / "out", spec, [folder / "animals.txt"])
    return folder
