"""Rows that DuckDB reads from the files are those that it finds in what Arrow reads."""

import os
import shutil

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.datasets import write_rows
from clip_transforms import filter_embeddings
from clip_transforms.parts.dataset import Dataset
from clip_transforms.parts.footers import read_footer
from clip_transforms.parts.reader import KEYS, DatasetError
from clip_transforms.select import passed
from clip_transforms.select.fence import ExpressionError, query_files
from clip_transforms.select.filtering import Filter
from schemas.provenance import encode_footer

NAN, TINY = float("nan"), 1e-45  # the smallest float32
PLAIN = {
    "f32:float32": [NAN, -0.0, 0.0, TINY, None, 0.29],
    "f64:float64": [NAN, -0.0, 5e-324, float("-inf"), None, 0.1],
    "none:float32": [None] * 6,
    "nan:float32": [NAN] * 6,
    "i8:int8": [-128, 127, 0, None, 1, 2],
    "i64:int64": [-(2**63), 2**63 - 1, 0, None, 1, 2],
    "u8:uint8": [255, 0, 1, None, 2, 3],
    "u64:uint64": [2**64 - 1, 0, 2**63, None, 2, 3],
    "flag:bool": [True, False, None, True, False, None],
    "Name:string": ["é", "", None, "a\0b", "it's", '"'],
}
OTHER = {
    "f16:float16": np.array([3, 0, 1, 2, 3, 0.29], np.float16),
    "day:date32": [0, -1, 1, None, 2, 3],
    "ms:timestamp[ms]": [0, -1, 1, None, 2, 3],
    "ns:timestamp[ns]": [0, -1, 1, None, 2, 3],
}


def write(folder, columns=PLAIN, lengths=(6, 0, 3)):
    """Write parts with the first rows of some columns; the second part has none."""
    scores, labels = [0.5, NAN, None, -0.0, 0.29, 0.1], ["cat", "dog", None, "cat", "dog", "cat"]
    parts = [
        {"clip_score": scores[:n], "width": np.arange(n), **{t.partition(":")[0]: v[:n] for t, v in columns.items()}}
        for n in lengths
    ]
    made = [{"label": labels[:n], "probability": scores[:n]} for n in lengths]
    return write_rows(folder, parts, {"animals": made}, columns=list(columns))


def opened(dataset, **conditions):
    """Return a filter, and the parts of its dataset."""
    found = Dataset.open(dataset)
    return Filter.of(found, **conditions), sorted(found.digests.items())


def read(dataset, rows, parts, classes=None):
    return passed.read_passed(dataset, parts, rows.where, KEYS, rows.floats, classes or rows.classes)


def both(dataset, **conditions):
    """Return what a filter keeps of each part and its counts, by DuckDB's reading, and by Arrow's."""
    rows, parts = opened(dataset, **conditions)
    found = read(dataset, rows, parts)
    assert found is not None
    ways = [rows.candidates(dataset, parts, KEYS, all_rows=all_rows) for all_rows in (False, True)]
    assert [sum(t.num_rows for t in way.left.tables.values()) for way in ways] == [len(found[1]), 9]
    schema = pa.schema([("key", pa.string()), ("shard", pa.string()), ("row", pa.int64())])
    kept = [list(way.kept(None, {})) for way in ways]
    return [
        [(p, t.select(KEYS).cast(schema).to_pydict(), t.num_columns, list(c.items())) for p, t, c in w] for w in kept
    ]


@pytest.mark.parametrize(
    "where",
    [
        "clip_score >= 0.29",
        "clip_score is null",
        "not clip_score < 0.29",
        "animals.probability > 0.2 or animals.label = 'dog'",
        "animals.label is null",
        "f32 = 0",
        "f32 > 0",
        "1 / f32 > 0",
        "f64 is null",
        "f64 > 0 and f64 < 1e-300",
        "f64 >= 0.1",
        '"none" is null',
        "nan > 0",
        "nan is null",
        "i8 < 0",
        "i64 >= 9223372036854775807",
        "u8 > 254",
        "u64 > 9223372036854775807",
        "flag",
        "not flag",
        "\"Name\" = 'é'",
        "NAME > 'b'",
        "strlen(name) = 3",
        "name = ''",
        "shard = '/shards/2.tar'",
        "row = 1",
        "true",
        "1 = 2",
        "try_cast(name as int) = 1 or width = 2",
    ],
)
def test_both_ways_keep_the_same_rows_and_count_the_same(tmp_path, where):
    new, old = both(write(tmp_path / "out"), where=where)
    assert new == old


@pytest.mark.parametrize("by", ["clip_score", "animals.probability", "f64", "u64", "i64", "flag", "width * f32"])
def test_both_ways_rank_the_same_values(tmp_path, by):
    new, old = both(write(tmp_path / "out"), where="width < 5", by=by, top_count=3, sample_fraction=0.9)
    assert new == old and any(counts for _, _, _, counts in new)


@pytest.mark.parametrize("name", ['it\'s "one"', "width=9", "a;b"])
def test_a_folder_may_have_any_name(tmp_path, name):
    new, old = both(write(tmp_path / name), where="width < 2")
    assert new == old and [len(rows["row"]) for _, rows, _, _ in new] == [2, 0, 2]


@pytest.mark.parametrize(
    "columns, name, where",
    [
        ({}, "a[b]", "width < 2"),
        ({}, "a*", "width < 2"),
        ({"Width:int32": [9] * 6}, "out", '"Width" = 9 and row < 2'),  # DuckDB would rename one of them
        ({"file_index:int32": [9] * 6}, "out", "file_index = 9 and row < 2"),
        *(
            (({text: values}), "out", f"{text.partition(':')[0]} is not null and row < 2")
            for text, values in OTHER.items()
        ),
    ],
)
def test_other_types_and_names_are_left_to_arrow(tmp_path, columns, name, where):
    dataset = write(tmp_path / name, columns)
    rows, parts = opened(dataset, where=where)
    assert rows.floats is None or read(dataset, rows, parts) is None
    assert filter_embeddings(dataset, tmp_path / "kept", where=where)["counts"]["kept"] == 4


@pytest.mark.parametrize(
    "kind",
    [
        *(pa.float16(), pa.large_string(), pa.string_view(), pa.binary(), pa.decimal128(9, 2), pa.time64("us")),
        *(pa.date32(), pa.date64(), pa.timestamp("s"), pa.timestamp("us", "Europe/Berlin"), pa.duration("us")),
        *(
            pa.list_(pa.int32()),
            pa.struct([("a", pa.int32())]),
            pa.dictionary(pa.int32(), pa.large_string()),
            pa.null(),
        ),
    ],
    ids=str,
)
def test_types_that_duckdb_reads_in_another_way_from_parquet_are_none_of_its(kind):
    schema = pa.schema([("a", pa.float64()), ("b", kind), ("c", pa.dictionary(pa.int32(), pa.string()))])
    assert passed.floats_of(schema, ["a", "c"]) == ("a",)
    assert passed.floats_of(schema, ["a", "b"]) is None


def test_a_row_that_the_first_half_of_a_condition_drops_can_make_the_other_fail_in_both_ways(tmp_path):
    dataset = write(tmp_path / "out")
    where = "width > 90 and name::int > 1"
    with pytest.raises(ExpressionError, match="fails on a row of part-00000: Conversion Error"):
        filter_embeddings(dataset, tmp_path / "kept", where=where)


@pytest.mark.parametrize("back", [False, True], ids=["replaced", "replaced and put back"])
@pytest.mark.parametrize("kind", ["embeddings", "labels/animals"])
def test_a_part_that_is_replaced_while_it_is_read_does_not_go_unnoticed(tmp_path, monkeypatch, kind, back):
    dataset, other = write(tmp_path / "out"), write(tmp_path / "other", {**PLAIN, "i8:int8": [9] * 6})
    path, kept = os.path.join(dataset, kind, "part-00000.parquet"), tmp_path / "kept.parquet"
    os.link(path, kept)

    def query_meanwhile(sql, folders):
        shutil.copy(os.path.join(other, kind, "part-00000.parquet"), tmp_path / "new")
        os.replace(tmp_path / "new", path)
        try:
            return query_files(sql, folders)
        finally:
            if back:
                os.replace(kept, path)

    rows, parts = opened(dataset, where="row < 2 and animals.label = 'cat'")
    assert read(dataset, rows, parts)[0].counts["seen"].tolist() == [6, 0, 3]
    monkeypatch.setattr(passed, "query_files", query_meanwhile)
    assert read(dataset, rows, parts) is None
    if not back:
        with pytest.raises(DatasetError):
            rows.candidates(dataset, parts, KEYS)


@pytest.mark.parametrize("of", ["digest", "classes"])
def test_files_with_other_digests_than_were_seen_are_not_read(tmp_path, of):
    dataset = write(tmp_path / "out")
    rows, parts = opened(dataset, where="animals.label = 'cat'")
    classes = rows.classes if of == "digest" else {"animals": "0" * 64}
    parts = parts if of == "classes" else [(part, "0" * 64) for part, _ in parts]
    assert read(dataset, rows, parts, classes) is None


@pytest.mark.parametrize("part, rows_left", [("part-00000", 5), ("part-00002", 2)])
def test_labels_of_fewer_rows_are_not_moved_to_the_rows_of_the_next_part(tmp_path, part, rows_left):
    dataset, other = write(tmp_path / "out"), write(tmp_path / "other")
    rows, parts = opened(dataset, where="animals.label = 'cat'")
    path = os.path.join(dataset, f"labels/animals/{part}.parquet")
    table = pq.read_table(os.path.join(other, f"labels/animals/{part}.parquet"))
    with pq.ParquetWriter(path, table.schema) as writer:
        writer.write_table(table.slice(0, rows_left))
        writer.add_key_value_metadata(encode_footer(read_footer(os.path.join(other, f"labels/animals/{part}.parquet"))))
    assert pq.read_metadata(path).num_rows == rows_left and read_footer(path)["digest"] == dict(parts)[part]
    assert read(dataset, rows, parts) is None


def test_a_query_of_files_reads_its_folders_and_nothing_else(tmp_path):
    dataset, folder = write(tmp_path / "out"), str(tmp_path / "out" / "embeddings")
    part, secret = f"{folder}/part-00000.parquet", tmp_path / "secret.csv"
    secret.write_text("a,b\n1,2\n")
    assert query_files(f"SELECT count(*) FROM '{part}'", [folder]).column(0).to_pylist() == [6]
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for sql in (
        f"SELECT * FROM read_csv('{secret}')",
        f"SELECT * FROM '{folder}/../../secret.csv'",
        f"SELECT * FROM '{dataset}/labels/animals/part-00000.parquet'",
        f"SELECT * FROM glob('{tmp_path}/*')",
        f"SELECT 1; COPY (SELECT 1) TO '{folder}/new.csv'",
        f"COPY (SELECT 1) TO '{folder}/new.csv'",
        f"COPY (SELECT 1) TO '{part}'",
        f"ATTACH '{folder}/new.db'",
        "INSTALL httpfs",
        "SET threads = 2",
        "SET enable_external_access = true",
    ):
        with pytest.raises(duckdb.Error):
            query_files(sql, [folder])
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
