"""What analysts read it with: DuckDB, Polars, pandas and Hugging Face datasets, with nulls and an empty part in it."""

import functools
import re
import shutil
import subprocess
import urllib.request
import zipfile
from collections import Counter
from pathlib import Path

import pytest
from conftest import ROOT, make_tar, pair, write_tar

from clip_transforms import embed_shards, filter_embeddings

QUERY = re.findall(r"```sql\n(.*?)```", (Path(ROOT) / "README.md").read_text(), re.DOTALL)[0]
COOKBOOK = (Path(ROOT) / "docs" / "cookbook.md").read_text()
PAGE = (Path(ROOT) / "docs" / "for-analysts.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


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


# docs/for-analysts.md


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """A folder `out` as that page describes it, and a selection `kept` of it."""
    folder = tmp_path_factory.mktemp("given")
    (folder / "animals.txt").write_text("red star\nblue circle\n")
    samples = pair("image-only", 1, caption=None)[:1] + pair("caption-only", 2)[1:] + pair("broken", 3, jpg=b"no")
    tars = [make_tar(folder / "a.tar", 6), write_tar(folder / "b.tar", samples)]
    embed_shards(tars, folder / "out", "demo", [folder / "animals.txt"])
    filter_embeddings(folder / "out", folder / "kept", where="width > 0")
    return folder


def test_duckdb_answers_every_question_of_the_analysts_page(given, monkeypatch):
    duckdb = pytest.importorskip("duckdb")
    monkeypatch.chdir(given)
    best, near, rejects, close, kept = (duckdb.sql(query).fetchall() for query in blocks("sql"))
    labels = Counter(label for label, *_ in best)
    assert labels and labels.keys() <= {"red star", "blue circle"} and max(labels.values()) <= 3
    assert best == sorted(best, key=lambda row: (row[0], -row[3])) and not any(
        key == "image-only" for _, key, *_ in best
    )
    assert near[0][1] == pytest.approx(1) and len(near) == 5
    assert rejects == [("image", "decode", "unknown format", 1)]
    assert len(close) == 7 and {second for *_, second in close} <= {"red star", "blue circle"}
    assert kept == [(7,)]


@pytest.mark.parametrize("library", ["polars", "pandas", "pyspark", "datasets"])
def test_python_of_the_analysts_page_runs(given, library, monkeypatch, capsys):
    pytest.importorskip(library)
    monkeypatch.chdir(given)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(given / "cache"))
    (block,) = [block for block in blocks("python") if f"import {library}" in block or f"from {library}" in block]
    exec(compile(block, "for-analysts.md", "exec"), {})
    printed = capsys.readouterr().out
    assert {"polars": "(7, 64)", "pandas": "(7, 64)", "pyspark": "label|  n|", "datasets": "(64,)"}[library] in printed


# The viewers of docs/cookbook.md; they are no packages of the tests, since they bring many others.


@pytest.mark.slow  # a minute of UMAP
def test_embedding_atlas_exports_the_page_of_the_cookbook(given, tmp_path, monkeypatch):
    if not shutil.which("embedding-atlas"):
        pytest.skip("needs embedding-atlas")
    embed_shards(make_tar(tmp_path / "a.tar", 60), tmp_path / "out", "demo")
    (command,) = re.findall(r"```sh\n(embedding-atlas .*)\n```", COOKBOOK)
    subprocess.run(command, shell=True, check=True, cwd=tmp_path, timeout=110)
    with zipfile.ZipFile(tmp_path / "atlas.zip") as page:
        assert {"index.html", "data/dataset.parquet"} <= set(page.namelist())


@pytest.mark.slow  # it starts a server, where it is installed
def test_spotlight_shows_what_the_cookbook_says(given, monkeypatch):
    spotlight = pytest.importorskip("renumics.spotlight")
    monkeypatch.chdir(given)
    show = functools.partial(spotlight.show, no_browser=True, wait=False)
    monkeypatch.setattr(spotlight, "show", show)
    (block,) = re.findall(r"```python\n(.*?)```", COOKBOOK, re.DOTALL)
    names = {}
    exec(compile(block, "cookbook.md", "exec"), names)
    try:
        with urllib.request.urlopen(names["viewer"].url, timeout=20) as answer:
            assert answer.status == 200
        assert len(names["rows"]) == 6
    finally:
        names["viewer"].close()
