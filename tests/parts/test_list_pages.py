"""Embeddings straight from their pages are those that Arrow reads; what is written otherwise is left to Arrow."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.datasets import write_rows
from clip_transforms import Dataset
from clip_transforms.parts.list_pages import UnusualError, as_array, find_chunk, read_embeddings, read_lists
from clip_transforms.parts.vectors import read_vectors

D = 24
NULLS = {
    "no nulls": lambda i: False,
    "nulls here and there": lambda i: i % 7 == 3,
    "long runs of nulls": lambda i: 100 < i < 900 or i > 2_500,
    "nulls at both ends": lambda i: i in (0, 2_999),
    "every other": lambda i: i % 2 == 0,
    "nothing but nulls": lambda i: True,
}


def lists(null, n=3_000, dtype=np.float32, d=D):
    rows = np.random.default_rng(0).normal(size=(n, d)).astype(dtype)
    return [None if null(i) else row for i, row in enumerate(rows)]


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("null", NULLS.values(), ids=NULLS.keys())
def test_our_parts_are_read_without_levels(null, dtype, tmp_path, monkeypatch):
    values = lists(null, dtype=dtype)
    folder = write_rows(tmp_path / "out", [{"image_embedding": values, "d": D}], embedding_dtype=dtype)
    path = tmp_path / "out" / "embeddings" / "part-00000.parquet"
    arrow = pq.read_table(path, columns=["image_embedding"]).column(0)
    with open(path, "rb") as opened:
        file = pq.ParquetFile(opened)
        monkeypatch.setattr(file, "read_row_group", None)  # Arrow must not be asked
        found = read_embeddings(file, opened, 0, "image_embedding", D)
    kept = np.array([row for row in values if row is not None], dtype).reshape(-1, D)
    assert np.array_equal(found.values, kept) and found.values.dtype == dtype
    assert found.valid.tolist() == [row is not None for row in values]
    assert as_array(found).to_pylist() == arrow.to_pylist()
    read = Dataset.open(folder).to_table(["image_embedding"]).column(0)
    assert read.type == pa.list_(pa.from_numpy_dtype(dtype), D) and read.to_pylist() == arrow.to_pylist()


@pytest.mark.parametrize(
    "options",
    [
        {"compression": "snappy"},
        {"compression": "none"},
        {"compression": "zstd", "data_page_size": 1_000},
        {"compression": "zstd", "data_page_size": 1_000, "write_batch_size": 100},
    ],
    ids=str,
)
def test_other_pages_of_lists_are_read_too(options, tmp_path):
    """Small pages end within a list."""
    values = lists(NULLS["nulls here and there"])
    table = pa.table({"image_embedding": pa.array(values, pa.list_(pa.float32()))})
    pq.write_table(table, path := tmp_path / "a.parquet", use_dictionary=False, **options)
    with open(path, "rb") as opened:
        file = pq.ParquetFile(opened)
        chunk = find_chunk(file.metadata, 0, "image_embedding")
        opened.seek(chunk.start)
        found = read_lists(opened.read(chunk.size), chunk, 3_000, D)
    assert as_array(found).to_pylist() == table.column(0).to_pylist()


@pytest.mark.parametrize(
    "column, options",
    [
        (lists(NULLS["no nulls"]), {"use_dictionary": True}),
        (lists(NULLS["no nulls"]), {"use_dictionary": False, "data_page_version": "2.0"}),
        ([None, [], *lists(NULLS["no nulls"])[2:]], {"use_dictionary": False}),
        ([None, [1.0] * (D - 1), [1.0] * (D + 1), *lists(NULLS["no nulls"])[3:]], {"use_dictionary": False}),
        ([[None] * D, *lists(NULLS["no nulls"])[1:]], {"use_dictionary": False}),
        ([[1.0] * (D - 1), [1.0] * (D + 1), *lists(NULLS["no nulls"])[3:]], {"use_dictionary": False}),
        ([row.astype(float) for row in lists(NULLS["no nulls"])], {"use_dictionary": False}),
    ],
    ids=[
        "dictionary",
        "pages of version 2",
        "empty list",
        "other lengths and a null",
        "null in a list",
        "other lengths",
        "float64",
    ],
)
def test_what_is_written_otherwise_is_left_to_arrow(column, options, tmp_path):
    type_ = pa.float64() if isinstance(column[1], np.ndarray) and column[1].dtype == np.float64 else pa.float32()
    table = pa.table({"image_embedding": pa.array(column, pa.list_(type_))})
    pq.write_table(table, path := tmp_path / "a.parquet", **options)
    with open(path, "rb") as opened:
        file = pq.ParquetFile(opened)
        with pytest.raises(UnusualError):
            chunk = find_chunk(file.metadata, 0, "image_embedding")
            opened.seek(chunk.start)
            read_lists(opened.read(chunk.size), chunk, len(column), D)
        if all(row is not None and len(row) == D for row in column) and column[0][0] is not None:
            found = read_embeddings(file, opened, 0, "image_embedding", D)
            assert found.values.tolist() == [list(row) for row in column]


def test_damaged_pages_are_unusual_and_never_end_in_another_error(tmp_path):
    write_rows(tmp_path / "out", [{"image_embedding": lists(NULLS["nulls here and there"], 300), "d": D}])
    with open(tmp_path / "out" / "embeddings" / "part-00000.parquet", "rb") as opened:
        chunk = find_chunk(pq.ParquetFile(opened).metadata, 0, "image_embedding")
        opened.seek(chunk.start)
        data = opened.read(chunk.size)
    rng, refused = np.random.default_rng(1), 0
    for _ in range(300):
        broken = bytearray(data[: rng.integers(len(data)) if rng.random() < 0.3 else len(data)])
        for place in rng.integers(0, max(1, min(len(broken), 60)), 2):
            if broken:
                broken[place] = rng.integers(256)
        try:
            read_lists(bytes(broken), chunk, 300, D)
        except UnusualError:
            refused += 1
    assert refused > 150


def test_only_row_groups_with_wanted_rows_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr("clip_transforms.parts.part_file._ROW_GROUP_ROWS", 100)
    values = lists(NULLS["nulls here and there"], 100)
    folder = write_rows(tmp_path / "out", [{"image_embedding": values, "d": D}])
    digest = Dataset.open(folder).digests["part-00000"]
    wanted = np.zeros(100, bool)
    assert list(read_vectors(folder, "part-00000", digest, ["image_embedding"], wanted)) == []
    wanted[50] = True
    (found,) = read_vectors(folder, "part-00000", digest, ["image_embedding"], wanted)
    assert found.first == 0 and found.rows.tolist() == list(range(100)) and found.values.shape == (86, 1, D)
    with pytest.raises(ValueError, match="was replaced while this command read the dataset"):
        list(read_vectors(folder, "part-00000", "another", ["image_embedding"]))
