"""How the columns of parts are encoded, and that parts of earlier versions stay parts of the same dataset."""

import uuid

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import files_of, make_tar, rows_of

from benchmarks.datasets import write_rows
from clip_transforms import filter_embeddings, label_embeddings
from clip_transforms.parts.part_file import PartFile
from schemas.captions import captions_schema
from schemas.embeddings import EMBEDDINGS, embeddings_schema
from schemas.labels import labels_schema
from schemas.rejects import rejects_schema
from schemas.samples import Column

N = 3_000
RNG = np.random.default_rng(0)
COLUMNS = [Column.parse(text, ()) for text in ("kind", "votes=v:int64", "beauty=b:float64")]
DICTIONARIES = {
    "embeddings": {"shard", "caption_tokens", "width", "height", "kind", "votes"},
    "captions": {"shard", "caption_index", "caption_tokens"},
    "labels": {"shard", "label", "top.list.element.label"},
    "rejects": {"shard", "modality", "stage", "reason", "message", "num_bytes"},
}
SCHEMAS = {
    "embeddings": embeddings_schema(columns=COLUMNS),
    "captions": captions_schema(),
    "labels": labels_schema(),
    "rejects": rejects_schema(),
}
VALUES = {"image_embedding": [0.5, -0.5], "caption_embedding": [0.5, 0.25], "caption_truncated": True}
VALUES["top"] = [{"label": "cat", "probability": 0.5, "similarity": 0.25}]


def value(field):
    text = pa.types.is_string(field.type) or pa.types.is_dictionary(field.type)
    return VALUES.get(field.name, "one" if text else 1)


@pytest.mark.parametrize("kind", SCHEMAS)
def test_columns_whose_values_differ_have_no_dictionary_and_all_but_lists_have_statistics(kind, tmp_path):
    schema = SCHEMAS[kind]
    rows = [{field.name: value(field) for field in schema} | {"row": row} for row in range(8)]
    file = PartFile(str(tmp_path), kind, schema)
    file.add(pa.RecordBatch.from_pylist(rows, schema=schema))
    file.close({})
    opened = pq.ParquetFile(file.path)
    assert opened.read().to_pylist() == rows and opened.schema_arrow.equals(schema)
    group = opened.metadata.row_group(0)
    columns = {column.path_in_schema: column for column in map(group.column, range(group.num_columns))}
    assert {path for path, column in columns.items() if column.has_dictionary_page} == DICTIONARIES[kind]
    deltas = {path for path, column in columns.items() if "DELTA_BINARY_PACKED" in column.encodings}
    split = {path for path, column in columns.items() if "BYTE_STREAM_SPLIT" in column.encodings}
    assert deltas == {"row"} and split == {f"{name}.list.element" for name in EMBEDDINGS if name in schema.names}
    assert {path for path, column in columns.items() if not column.is_stats_set} == {
        path for path in columns if ".list." in path
    }
    assert (columns["row"].statistics.min, columns["row"].statistics.max) == (0, 7)


KEYS = {
    "numbers": [f"{i:09d}" for i in range(N)],
    "numbers in any order": [f"{i:09d}" for i in RNG.permutation(N)],
    "paths": [f"2024/{i // 100}/IMG_{i:05d}.jpg" for i in range(N)],
    "UUIDs": [str(uuid.UUID(bytes=RNG.bytes(16))) for _ in range(N)],
    "URLs": [f"https://{RNG.bytes(2).hex()}.example.com/{RNG.bytes(6).hex()}.jpg" for _ in range(N)],
    "ten samples of each key": [f"{i // 10:09d}" for i in range(N)],
}


@pytest.mark.parametrize("keys", KEYS.values(), ids=KEYS)
def test_no_kind_of_keys_takes_more_bytes_than_with_a_dictionary(keys, tmp_path):
    write_rows(tmp_path / "out", [{"key": keys}])
    (path,) = (tmp_path / "out" / "embeddings").glob("*.parquet")
    now = pq.ParquetFile(path).metadata.row_group(0).column(0)
    as_before(path)
    then = pq.ParquetFile(path).metadata.row_group(0).column(0)
    assert then.has_dictionary_page and now.total_compressed_size < then.total_compressed_size


def as_before(path):
    """Write a part again as earlier versions did: with a dictionary for each column but the embeddings."""
    file = pq.ParquetFile(pa.BufferReader(path.read_bytes()))
    plain = [field.name for field in file.schema_arrow if field.name not in EMBEDDINGS]
    lists = [f"{name}.list.element" for name in EMBEDDINGS if name in file.schema_arrow.names]
    schema = file.schema_arrow.remove_metadata()
    options = {"compression": "zstd", "use_dictionary": plain, "use_byte_stream_split": lists}
    with pq.ParquetWriter(path, schema, write_statistics=plain, **options) as writer:
        for group in range(file.num_row_groups):
            writer.write_table(file.read_row_group(group))
        writer.add_key_value_metadata({"clip": file.metadata.metadata[b"clip"].decode()})


def test_a_dataset_that_an_earlier_version_began_goes_on(embed, tmp_path, taxonomy_file, capsys):
    """Its parts stay as they are, and what is made of old and new parts is what new parts give."""
    for name, count in (("a", 6), ("b", 4), ("c", 5)):
        make_tar(tmp_path / f"{name}.tar", count)
    flags = ["--taxonomy", taxonomy_file]
    new, mixed = tmp_path / "new", tmp_path / "mixed"
    embed(tmp_path / "*.tar", output=new, flags=flags)
    embed(tmp_path / "[ab].tar", output=mixed, flags=flags)
    for path in mixed.rglob("*.parquet"):
        if path.parent.name != "taxonomies":
            as_before(path)
    old = files_of(mixed)
    made = files_of(new)
    assert len(old) == 6 and all(made[name] != data for name, data in old.items() if "rejects" not in name)
    capsys.readouterr()
    embed(tmp_path / "*.tar", output=mixed, flags=flags)
    assert "1 unit committed, 2 skipped" in capsys.readouterr().out
    assert files_of(mixed) == made | old
    for kind in ("embeddings", "labels/animals"):
        assert rows_of(mixed, kind) == rows_of(new, kind) and len(rows_of(mixed, kind)) == 15
    where = "animals.label is not null and row >= 2"
    kept = [filter_embeddings(folder, folder.with_suffix(".kept"), where=where) for folder in (new, mixed)]
    assert [found["counts"]["kept"] for found in kept] == [9, 9]
    parts = [{p.name: p.read_bytes() for p in folder.with_suffix(".kept").glob("parts/*")} for folder in (new, mixed)]
    assert len(parts[0]) == 3 and parts[0] == parts[1]


def test_labels_are_made_of_parts_of_an_earlier_version(embed, tmp_path, taxonomy_file):
    make_tar(tmp_path / "a.tar", 6)
    embed(tmp_path / "a.tar", output=tmp_path / "out")
    (path,) = (tmp_path / "out" / "embeddings").glob("*.parquet")
    as_before(path)
    label_embeddings(tmp_path / "out", taxonomy_file)
    labels = rows_of(tmp_path / "out", "labels/animals")
    assert [row["row"] for row in labels] == list(range(6)) and all(row["label"] for row in labels)
