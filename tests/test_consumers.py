"""What analysts read it with: DuckDB, Polars, pandas and Hugging Face datasets, with nulls and an empty part in it."""

import re
from pathlib import Path

import pytest
from conftest import ROOT, make_tar, pair, write_tar

QUERY = re.findall(r"```sql\n(.*?)```", (Path(ROOT) / "README.md").read_text(), re.DOTALL)[0]


@pytest.fixture(params=["float32", "float16"])
def dataset(request, embed, tmp_path, taxonomy_file):
    """Two shards with nulls and one without any row."""
    path = write_tar(tmp_path / "b.tar", pair("image-only", 1, caption=None)[:1] + pair("caption-only", 2)[1:])
    empty = write_tar(tmp_path / "empty.tar", [])
    flags = ["--taxonomy", taxonomy_file, "--embedding_dtype", request.param]
    embed(make_tar(tmp_path / "a.tar", 6), path, empty, output=tmp_path / "out", flags=flags)
    return tmp_path / "out"


def test_duckdb_answers_the_readmes_query(dataset):
    duckdb = pytest.importorskip("duckdb")
    query = QUERY.replace("'out/", f"'{dataset}/").replace("/animals/", "/animals/").replace("> 0.2", "> -2")
    query = re.sub(r"l\.label = '\w+'", "l.label IS NOT NULL", query)
    rows = duckdb.connect().execute(query).fetchall()
    assert len(rows) == 6
    cosine = (
        "SELECT max(abs(clip_score - "
        "array_cosine_similarity(image_embedding::FLOAT[48], caption_embedding::FLOAT[48])))"
        f" FROM '{dataset}/embeddings/*.parquet'"
    )
    assert duckdb.connect().execute(cosine).fetchone()[0] < 2e-3


def test_polars_joins_and_filters(dataset):
    polars = pytest.importorskip("polars")
    rows = polars.read_parquet(f"{dataset}/embeddings/*.parquet")
    labels = polars.read_parquet(f"{dataset}/labels/animals/*.parquet")
    joined = rows.join(labels, on=["shard", "row"])
    assert joined.height == 8 and joined.filter(polars.col("label").is_null()).height == 1
    assert rows.filter(polars.col("key") == "caption-only")["image_embedding"].to_list() == [None]
    assert len(rows.filter(polars.col("key") == "image-only")["image_embedding"].to_list()[0]) == 48


def test_pandas_reads_the_folder(dataset):
    pandas = pytest.importorskip("pandas")
    rows = pandas.read_parquet(dataset / "embeddings")
    labels = pandas.read_parquet(dataset / "labels" / "animals")
    assert len(rows.merge(labels, on=["shard", "row"])) == 8
    assert rows.set_index("key").loc["caption-only", "image_embedding"] is None
    assert len(rows.set_index("key").loc["image-only", "image_embedding"]) == 48


def test_hugging_face_datasets_loads_it(dataset, tmp_path):
    datasets = pytest.importorskip("datasets")
    loaded = datasets.load_dataset(
        "parquet", data_files=f"{dataset}/embeddings/*.parquet", split="train", cache_dir=str(tmp_path / "cache")
    )
    assert len(loaded) == 8
    by_key = {row["key"]: row for row in loaded}
    assert by_key["caption-only"]["image_embedding"] is None and len(by_key["image-only"]["image_embedding"]) == 48


def test_embedding_reader_stops_at_a_null(dataset):
    """So docs/usage.md says to export for it; tests/exports reads what `--as clip_retrieval` writes."""
    reader = pytest.importorskip("embedding_reader").EmbeddingReader
    settings = {"file_format": "parquet", "embedding_column": "image_embedding", "meta_columns": ["key"]}
    with pytest.raises(Exception, match="failed reading file|NoneType"):
        list(reader(str(dataset / "embeddings"), **settings)(batch_size=4))
