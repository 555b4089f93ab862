"""search: exact rows for words, pictures, samples and embeddings; the same on every runner."""

import inspect
import re

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from conftest import command, picture
from filtered import files
from searched import D, found, made_pictures, made_single, make, plain, query_file, unit  # noqa: F401

from clip_transforms import Dataset, SearchEmbeddings, clip, filter_embeddings, search_embeddings
from schemas.results import results_schema

# Commands in this process; those in a process of their own, and the transforms, take Beam.
pytestmark = pytest.mark.usefixtures("without_beam")


@pytest.fixture(scope="module", params=["float32", "float16"])
def dataset(request, tmp_path_factory):
    return make(tmp_path_factory.mktemp(request.param) / "out", request.param)


@pytest.mark.parametrize("count", [1, 100, pytest.param(10_000, marks=pytest.mark.slow)])  # four seconds each
def test_it_is_exact_with_ties_by_shard_and_row(dataset, tmp_path, count):
    path, queries = query_file(tmp_path, count)
    results = search_embeddings(dataset, queries=path, top_k=10)
    assert found(results) == plain(dataset, queries)
    assert results.schema == results_schema() and results["query"][-1].as_py() == str(count - 1)


def test_ten_thousand_queries_are_exact(single, tmp_path):
    path, queries = query_file(tmp_path, 10_000)
    assert found(search_embeddings(single, queries=path, top_k=3)) == plain(single, queries, k=3)


@pytest.mark.parametrize("against", ["image", "caption", "both"])
def test_what_is_compared(single, tmp_path, against):
    path, queries = query_file(tmp_path, 7)
    results = search_embeddings(single, queries=path, against=against, top_k=3000)
    if against != "both":
        assert found(results) == plain(single, queries, f"{against}_embedding", k=3000)
        return
    image, caption = (
        [{row[:2]: row[2] for row in of} for of in plain(single, queries, f"{name}_embedding", k=3000)]
        for name in ("image", "caption")
    )
    for of, i, c in zip(found(results), image, caption, strict=True):
        assert {row[:2] for row in of} == i.keys() & c.keys()
        assert [row[2] for row in of] == pytest.approx([(i[row[:2]] + c[row[:2]]) / 2 for row in of], abs=1e-6)


def test_where_and_selections_narrow_the_rows(single, tmp_path):
    path, queries = query_file(tmp_path, 20)
    filter_embeddings(single, tmp_path / "kept", where="width < 4")
    where = "animals.label = 'cat'"
    results = search_embeddings(single, queries=path, where=where, selection=tmp_path / "kept")
    labels = {
        (row["shard"], row["row"]): row["animals.label"]
        for row in Dataset.open(single).to_table(labels="animals").to_pylist()
    }
    keep = lambda row: row["width"] < 4 and labels[row["shard"], row["row"]] == "cat"  # noqa: E731
    assert found(results) == plain(single, queries, keep=keep)
    assert results["labels"][0].as_py() == [("animals", {"label": "cat", "probability": 0.5})]
    pq.write_table(pa.table({"shard": ["/shards/b.tar"] * 2, "row": [3, 4]}), tmp_path / "mine.parquet")
    some = found(search_embeddings(single, queries=path, selection=tmp_path / "mine.parquet"))
    assert some == plain(single, queries, keep=lambda row: row["shard"] == "/shards/b.tar" and row["row"] in (3, 4))


def test_every_runner_writes_the_same_bytes(single, service, tmp_path):
    path, _ = query_file(tmp_path, 9)
    asked = {"queries": path, "where": "width > 1", "top_k": 4}
    search_embeddings(single, tmp_path / "plain", **asked)
    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        _ = pipeline | SearchEmbeddings(single, tmp_path / "beam", **asked)
    argv = ["--input", single, "--queries", path, "--where", "width > 1", "--top_k", "4"]
    done = command("pipelines.search", *argv, "--output", tmp_path / "portable", *service)
    assert done.returncode == 0, done.stderr
    assert "36 results for 9 queries" in done.stdout and "with those of 4 more" in done.stdout
    reference = files(tmp_path / "plain")
    assert sorted(reference) == ["_SUCCESS", "_command.json", "results.parquet", "search.json"]
    assert files(tmp_path / "beam") == files(tmp_path / "portable") == reference


@pytest.mark.parametrize("rows", [1, 100, 1 << 20], ids=lambda n: f"groups of {n}")
def test_the_bytes_do_not_depend_on_how_parts_are_grouped(single, tmp_path, monkeypatch, rows):
    path, queries = query_file(tmp_path, 9)
    for name in ("_FEWEST", "_MOST"):
        monkeypatch.setattr(f"clip_transforms.run.search_files.{name}", rows)
    assert found(search_embeddings(single, queries=path)) == plain(single, queries)


def test_words_find_the_captions_that_say_them(pictures):
    results = search_embeddings(pictures / "out", text="picture number 3", against="caption", top_k=2).to_pylist()
    assert (results[0]["key"], results[0]["caption"]) == ("000003", "picture number 3")
    assert results[0]["similarity"] == pytest.approx(1, abs=1e-6) and results[1]["similarity"] < 1


def test_words_are_embedded_as_the_model_alone_does(pictures, tiny_checkpoint):
    results = search_embeddings(pictures / "out", text=["a cat", "a dog"], top_k=8).to_pylist()
    model = clip.load(tiny_checkpoint, "cpu", precision="fp32")
    rows, images = Dataset.open(pictures / "out").embeddings("image")
    for text, query in zip(("a cat", "a dog"), model.embed_captions(["a cat", "a dog"]).numpy(), strict=True):
        own = {(row["shard"], row["row"]): row["similarity"] for row in results if row["query"] == text}
        places = [(row["shard"], row["row"]) for row in rows.to_pylist()]
        wanted = dict(zip(places, images @ query, strict=True))
        assert own.keys() == wanted.keys() and len(own) == 8
        assert own == {row: pytest.approx(value, abs=1e-6) for row, value in wanted.items()}


def test_a_text_that_is_too_long_is_cut_with_a_warning(pictures, caplog):
    search_embeddings(pictures / "out", text=["a cat " * 50, "a cat", "dog " * 99])
    assert re.search("the text 'a cat a cat .*…' is cut at 77 tokens, and 1 other", caplog.text)


def test_a_picture_finds_itself(pictures, tmp_path):
    (tmp_path / "mine.jpg").write_bytes(picture(4))
    results = search_embeddings(pictures / "out", image=tmp_path / "mine.jpg", top_k=2).to_pylist()
    assert results[0]["key"] == "000004" and results[0]["similarity"] == pytest.approx(1, abs=1e-5)
    assert results[0]["query"] == str(tmp_path / "mine.jpg")


@pytest.mark.parametrize(
    "towers, asked", [({"text"}, {"text": "a cat"}), ({"text", "visual"}, {"image": True}), (set(), {"like": "000003"})]
)
def test_only_the_towers_that_are_needed_are_loaded(pictures, tmp_path, monkeypatch, towers, asked):
    import clip_transforms.clip.checkpoints as checkpoints

    loaded, real = set(), checkpoints.load_checkpoint

    def load(*args, **kwargs):
        model = real(*args, **kwargs)
        loaded.update(name for name in ("text", "visual") if getattr(model, name) is not None)
        return model

    monkeypatch.setattr(checkpoints, "load_checkpoint", load)
    (tmp_path / "mine.jpg").write_bytes(picture(4))
    search_embeddings(pictures / "out", **({"image": tmp_path / "mine.jpg"} if "image" in asked else asked))
    assert loaded == towers


def test_a_sample_finds_itself_first(pictures):
    results = search_embeddings(pictures / "out", like=["000003", f"{pictures}/b.tar#0"], top_k=1).to_pylist()
    assert [(row["query"], row["key"], row["shard"][-5:]) for row in results] == [
        ("000003", "000003", "a.tar"),
        (f"{pictures}/b.tar#0", "000001", "b.tar"),
    ]
    assert [row["similarity"] for row in results] == [pytest.approx(1, abs=1e-6)] * 2


def test_a_file_of_queries(pictures, single, tmp_path):
    (tmp_path / "words.txt").write_text("a cat\n\n  \na dog\n")
    asked = search_embeddings(pictures / "out", queries=tmp_path / "words.txt", top_k=1)
    assert asked["query"].to_pylist() == ["a cat", "a dog"]
    (tmp_path / "words.csv").write_text('text,other\n"a cat",1\na dog,2\n')
    assert search_embeddings(pictures / "out", queries=tmp_path / "words.csv", top_k=1) == asked
    long = [3.0] * D
    (tmp_path / "vectors.csv").write_text(f'text,embedding\nmine,"{long}"\n')
    results = search_embeddings(single, queries=tmp_path / "vectors.csv")
    assert set(results["query"].to_pylist()) == {"mine"}
    assert found(results) == plain(single, unit(np.array([long])))


def test_the_function_and_the_transform_take_the_same_arguments_by_name():
    function, transform = (inspect.signature(call).parameters for call in (search_embeddings, SearchEmbeddings))
    assert {**function, "output": None} == {**transform, "output": None}
    assert all(f"\n    {name}: " in inspect.getdoc(search_embeddings) for name in function)
    with pytest.raises(TypeError, match="unexpected .* 'txt'"):
        search_embeddings("out", txt="a cat")
