"""index: what it holds, that its recall is what an independent count finds, and what is refused."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import command
from test_runners import TWO_PROCESSES

from benchmarks.datasets import write_rows
from clip_transforms import Dataset, filter_embeddings, index_embeddings, search_embeddings
from clip_transforms.select import index_folder, vector_index
from pipelines import index, search

# Commands in this process; those in a process of their own, and the transforms, take Beam.
pytestmark = pytest.mark.usefixtures("without_beam")

D, SIZES = 32, (1500, 0, 700, 1800)
KINDS = ("flat", "ivf", "hnsw")


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def clusters(n, seed):
    """Vectors around a hundred centres, as those of pictures are."""
    rng = np.random.default_rng(seed)
    return unit(rng.normal(size=(100, D))[rng.integers(0, 100, n)] + rng.normal(size=(n, D)) * 0.6)


def make(folder, vectors, captions=None):
    ends = np.cumsum([0, *SIZES])
    parts = []
    for first, stop in zip(ends[:-1], ends[1:], strict=True):
        images = [None if i % 50 == 7 else v for i, v in enumerate(vectors[first:stop])]
        parts.append({"image_embedding": images, "width": np.arange(stop - first) % 100, "d": D})
        parts[-1] |= {} if captions is None else {"caption_embedding": captions[first:stop]}
    return write_rows(folder, parts)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    vectors = clusters(sum(SIZES), 0)
    captions = unit(vectors + np.random.default_rng(1).normal(size=vectors.shape) * 0.1)
    return make(tmp_path_factory.mktemp("made") / "out", vectors, captions)


@pytest.fixture(scope="module")
def indexes(dataset, tmp_path_factory):
    """Kind → folder of an index, and its record."""
    folder = tmp_path_factory.mktemp("indexes")
    return {kind: (folder / kind, index_embeddings(dataset, folder / kind, kind=kind)) for kind in KINDS}


def nearest(rows, vectors, queries, k=10):
    """(shard, row) of the exact nearest rows of each query."""
    products = queries.astype(np.float64) @ vectors.astype(np.float64).T
    return [{rows[i] for i in np.argsort(-of, kind="stable")[:k]} for of in products]


def names(table):
    return list(zip(table["shard"].to_pylist(), table["row"].to_pylist(), strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_the_printed_recall_is_that_of_an_independent_count(dataset, indexes, kind, tmp_path):
    folder, record = indexes[kind]
    asked = names(pq.read_table(folder / "queries.parquet"))
    opened = Dataset.open(dataset)
    for modality in ("image", "caption"):
        rows, vectors = opened.embeddings(modality)
        own = dict(zip(names(rows), vectors, strict=True))
        queries = np.array([own[row] for row in asked if row in own])
        assert record["queries"][modality] == len(queries) == 200
        pq.write_table(pa.table({"embedding": list(queries)}), tmp_path / "q.parquet")
        results = search_embeddings(dataset, queries=tmp_path / "q.parquet", index=folder)
        found = [set() for _ in queries]
        for query, row in zip(results["query"].to_pylist(), names(results), strict=True):
            found[int(query)].add(row)
        rows, vectors = opened.embeddings("image")
        exact = nearest(names(rows), vectors, queries)
        counted = sum(len(a & b) for a, b in zip(found, exact, strict=True)) / (10 * len(queries))
        assert record["recall_at_10"][modality] == pytest.approx(counted, abs=0.002)  # equal within float16
        assert counted > 0.95


def test_what_is_written(dataset, indexes):
    folder, record = indexes["ivf"]
    assert sorted(path.name for path in folder.iterdir()) == [
        *("_SUCCESS", "_command.json", "index.faiss", "index.json", "queries.parquet", "rows.parquet")
    ]
    rows, vectors = Dataset.open(dataset).embeddings("image")
    written = pq.read_table(folder / "rows.parquet")
    assert names(written) == names(rows) and written["key"].to_pylist() == rows["key"].to_pylist()
    assert (record["kind"], record["rows"]) == ("ivf", len(vectors)) and record["made_by"]["against"] == "image"
    assert vector_index.open_index(str(folder / "index.faiss")).ntotal == len(vectors)


@pytest.mark.parametrize("kind", ["flat", "ivf"])
def test_the_same_index_has_the_same_bytes(dataset, indexes, kind, tmp_path):
    index_embeddings(dataset, tmp_path / "again", kind=kind)
    for name in ("index.faiss", "index.json", "queries.parquet", "rows.parquet"):
        assert (tmp_path / "again" / name).read_bytes() == (indexes[kind][0] / name).read_bytes(), name


@pytest.mark.parametrize("kind", KINDS)
def test_where_and_selections_narrow_what_is_found(dataset, indexes, kind, tmp_path):
    """The rows that may be found are a fiftieth, and still the ten nearest of them are found."""
    filter_embeddings(dataset, tmp_path / "kept", where="width < 4")
    asked = {"like": "/shards/0.tar#11", "where": "width >= 2", "selection": tmp_path / "kept"}
    exact = search_embeddings(dataset, **asked)
    found = search_embeddings(dataset, **asked, index=indexes[kind][0])
    assert exact.num_rows == found.num_rows == 10
    assert len({*names(exact)} & {*names(found)}) >= 9
    assert np.abs(exact["similarity"].to_numpy() - found["similarity"].to_numpy()).max() < 0.01
    none = search_embeddings(dataset, like="/shards/0.tar#11", where="width > 500", index=indexes[kind][0])
    assert none.num_rows == 0


def test_more_than_there_are_is_all_of_them(dataset, indexes):
    found = search_embeddings(dataset, like="/shards/0.tar#11", top_k=9_999, index=indexes["flat"][0])
    assert found.num_rows == indexes["flat"][1]["rows"] and found["rank"].to_pylist() == list(range(1, 3_921))


def test_random_vectors_have_a_bad_recall_and_it_says_so(tmp_path, capsys, without_beam):
    random = unit(np.random.default_rng(2).normal(size=(sum(SIZES), D)))
    folder = make(tmp_path / "out", random)
    argv = ["--input", folder, "--output", str(tmp_path / "index"), "--kind", "ivf"]
    assert index.main(argv) == 0
    said = capsys.readouterr().out.splitlines()
    recall = json.loads((tmp_path / "index" / "index.json").read_text())["recall_at_10"]
    assert said[0] == f"3,920 image embeddings in {tmp_path}/index (ivf)" and recall["image"] < 0.95
    assert said[1] == f"recall@10 with 200 image embeddings as queries: {recall['image']:.4f}"
    assert said[2].startswith("note: the index misses many of the nearest rows")


def test_the_command_runs_on_beam_and_writes_what_the_function_writes(dataset, indexes, tmp_path, capsys):
    argv = ["--input", dataset, "--output", str(tmp_path / "index"), "--kind", "flat"]
    assert index.main(argv) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"3,920 image embeddings in {tmp_path}/index (flat)" and lines[1].startswith("recall@10 with")
    for name in ("index.faiss", "rows.parquet", "queries.parquet", "index.json"):
        assert (tmp_path / "index" / name).read_bytes() == (indexes["flat"][0] / name).read_bytes()
    assert index.main(argv) == 0 and "nothing was left to do" in capsys.readouterr().out


@pytest.mark.slow  # workers import faiss and Beam, each for itself: ten seconds each
@pytest.mark.timeout(200)
@pytest.mark.parametrize("kind", ["flat", "ivf"])  # threads build the graph of hnsw, so its bytes differ
def test_other_runners_write_the_same_bytes(kind, dataset, indexes, service, tmp_path):
    for name, flags in (("portable", service), ("processes", TWO_PROCESSES)):
        argv = ["--input", dataset, "--output", tmp_path / name, "--kind", kind, *flags]
        done = command("pipelines.index", *argv, timeout=150)
        assert done.returncode == 0, done.stderr
        for file in ("index.faiss", "rows.parquet", "queries.parquet", "index.json"):
            assert (tmp_path / name / file).read_bytes() == (indexes[kind][0] / file).read_bytes()


def test_a_search_with_an_index_says_that_it_is_not_exact(dataset, indexes, capsys):
    assert search.main(["--input", dataset, "--like", "/shards/0.tar#1", "--index", str(indexes["ivf"][0])]) == 0
    assert f"note: these are what {indexes['ivf'][0]} found; without --index" in capsys.readouterr().out


def test_small_datasets_get_a_flat_index_and_large_ones_lists():
    assert [vector_index.kind_for("auto", n) for n in (0, 50_000, 50_001)] == ["flat", "flat", "ivf"]
    assert vector_index.kind_for("hnsw", 3) == "hnsw"


def test_rows_are_looked_up_in_row_groups(dataset, indexes, tmp_path, monkeypatch):
    monkeypatch.setattr(index_folder, "GROUP_ROWS", 100)
    index_embeddings(dataset, tmp_path / "index", kind="flat")
    assert pq.ParquetFile(tmp_path / "index" / "rows.parquet").metadata.num_row_groups == 40
    found = search_embeddings(dataset, like="/shards/3.tar#1700", index=tmp_path / "index")
    assert found == search_embeddings(dataset, like="/shards/3.tar#1700", index=indexes["flat"][0])


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_dataset_has_an_empty_index(tmp_path, kind):
    write_rows(tmp_path / "out", [{"image_embedding": np.empty((0, 4)), "d": 4}])
    assert index_embeddings(tmp_path / "out", tmp_path / "index", kind=kind)["rows"] == 0
    pq.write_table(pa.table({"embedding": [[1.0, 0, 0, 0]]}), tmp_path / "q.parquet")
    assert search_embeddings(tmp_path / "out", queries=tmp_path / "q.parquet", index=tmp_path / "index").num_rows == 0


def test_an_empty_index_says_so(tmp_path, capsys, without_beam):
    write_rows(tmp_path / "out", [{"image_embedding": np.empty((0, 4)), "d": 4}])
    assert index.main(["--input", str(tmp_path / "out"), "--output", str(tmp_path / "index")]) == 0
    assert "note: the index is empty, since no selected row has an image\n" in capsys.readouterr().out


def test_an_index_of_a_dataset_that_changed_is_refused(indexes, dataset, tmp_path):
    copy = shutil.copytree(dataset, tmp_path / "copy")
    like = {"like": "/shards/0.tar#1", "index": indexes["flat"][0]}
    assert search_embeddings(copy, **like).num_rows == 10  # another place, the same rows
    shutil.rmtree(tmp_path / "copy" / "embeddings")
    shutil.rmtree(tmp_path / "copy" / "rejects")
    make(tmp_path / "copy", clusters(sum(SIZES), 3))
    with pytest.raises(ValueError, match="was made before .* changed; python -m pipelines.index .*--overwrite"):
        search_embeddings(copy, **like)


def test_wrong_input_is_one_sentence(dataset, indexes, tmp_path, monkeypatch):
    like, flat = {"like": "/shards/0.tar#1"}, indexes["flat"][0]
    for asked, message in (
        ({"index": tmp_path}, "--index .* is no index; python -m pipelines.index --input .* makes one"),
        ({"index": flat, "against": "caption"}, "--against is caption, but --index .* holds image embeddings; omit"),
        ({"index": flat, "against": "both"}, "holds image embeddings; omit --index, which searches both exactly"),
    ):
        with pytest.raises(ValueError, match=message):
            search_embeddings(dataset, **like, **asked)
    with pytest.raises(ValueError, match="--kind is 'tree', but it must be auto, flat, hnsw or ivf"):
        index_embeddings(dataset, tmp_path / "new", kind="tree")
    other = write_rows(tmp_path / "other", [{"image_embedding": np.eye(3, 4)}], embedding_dtype="float16")
    with pytest.raises(ValueError, match="--index .* is of another dataset"):
        search_embeddings(other, **like, index=flat)
    with pytest.raises(ValueError, match="holds no caption embeddings"):
        index_embeddings(other, tmp_path / "new", against="caption")
    broken = shutil.copytree(flat, tmp_path / "broken")
    (broken / "index.json").write_text("{")
    with pytest.raises(ValueError, match="index.json is damaged"):
        search_embeddings(dataset, **like, index=broken)
    (broken / "_SUCCESS").unlink()
    with pytest.raises(ValueError, match="is not complete; run the command that made it again"):
        search_embeddings(dataset, **like, index=broken)
    command = json.loads((broken / "_command.json").read_text())
    (broken / "_command.json").write_text(json.dumps(command | {"verb": "filter"}))
    with pytest.raises(ValueError, match="is no index"):
        search_embeddings(dataset, **like, index=broken)
    monkeypatch.setitem(__import__("sys").modules, "faiss", None)
    for call in (
        lambda: index_embeddings(dataset, tmp_path / "new"),
        lambda: search_embeddings(dataset, **like, index=flat),
    ):
        with pytest.raises(
            ValueError, match=r"needs faiss, which is not installed: pip install 'clip-transforms\[search\]'"
        ):
            call()
    assert not (tmp_path / "new").exists()
