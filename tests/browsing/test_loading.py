"""A dataset is loaded from Parquet, or from what was kept of it, and gives the same either way."""

import os

import numpy as np
import pytest
from browse_client import Client, loaded_session, make_dataset

from benchmarks.datasets import write_rows
from clip_transforms import index_embeddings
from clip_transforms.browsing import loading
from clip_transforms.browsing.plan import plan_browse
from clip_transforms.browsing.session import Session


@pytest.fixture(scope="module")
def made(tmp_path_factory, tiny_checkpoint):
    return make_dataset(tmp_path_factory.mktemp("made"), tiny_checkpoint)


@pytest.fixture
def keeps(monkeypatch):
    """Even the smallest dataset is kept."""
    monkeypatch.setattr(loading, "KEPT_ROWS", 1)


def kept(cache):
    return sorted(path.suffix for path in cache.rglob("*") if path.is_file())


def answers(session):
    client = Client(session)
    return [client.search(rows=200, **asked) for asked in ({}, {"like": 3}, {"labels": {"colors": "red"}, "size": 30})]


def test_what_is_kept_answers_as_the_parquet_does(made, tmp_path, keeps, monkeypatch):
    written = loaded_session(made / "out", cache=tmp_path / "cache")
    assert kept(tmp_path / "cache") == [".arrow", ".lengths", ".vectors"]
    monkeypatch.setattr(loading, "read_table", None)  # nothing is read from Parquet again
    monkeypatch.setattr(loading, "read_vectors", None)
    again = loaded_session(made / "out", cache=tmp_path / "cache")
    monkeypatch.undo()
    plain = loaded_session(made / "out", cache=tmp_path / "none")
    assert answers(written) == answers(again) == answers(plain) and not (tmp_path / "none").exists()
    assert np.array_equal(plain.loaded.vectors.values, again.loaded.vectors.values)
    for session in (written, again, plain):
        session.close()


def parts(seed, rows=6):
    vectors = np.random.default_rng(seed).standard_normal((rows, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return [{"image_embedding": vectors, "caption": ["a"] * rows, "d": 8}]


def test_what_was_kept_of_other_rows_is_removed(tmp_path, keeps):
    cache, values = tmp_path / "cache", []
    for seed in (0, 1):
        made = parts(seed)
        dataset = write_rows(tmp_path / "out", made)
        session = loaded_session(dataset, cache=cache)
        values.append(np.array(session.loaded.vectors.values))
        assert np.array_equal(values[-1], made[0]["image_embedding"])
        assert kept(cache) == [".arrow", ".lengths", ".vectors"]
        session.close()
    (folder,) = cache.iterdir()
    abandoned = folder / ".unfinished-1"
    abandoned.mkdir()
    (abandoned / "x").write_text("x")
    loaded_session(dataset, cache=cache).close()
    assert abandoned.exists()  # perhaps another process is writing it
    for place in (abandoned / "x", abandoned):
        os.utime(place, (0, 0))
    loaded_session(dataset, cache=cache).close()
    assert not abandoned.exists()


@pytest.mark.parametrize("fault", ["a file in its place", "no room"])
def test_a_cache_that_cannot_be_written_costs_a_line(tmp_path, keeps, fault, caplog, monkeypatch):
    cache = tmp_path / "cache"
    if fault == "no room":
        monkeypatch.setattr("shutil.disk_usage", lambda path: os.terminal_size((0, 0)) and type("U", (), {"free": 0}))
    else:
        cache.write_text("")
    session = loaded_session(write_rows(tmp_path / "out", parts(0)), cache=cache)
    assert np.array_equal(session.loaded.vectors.values, parts(0)[0]["image_embedding"])
    assert "the cache" in caplog.text and "held in memory" in caplog.text
    session.close()


def test_an_index_answers_with_its_rows(tmp_path):
    many = [{**parts(seed, 40)[0], "shard": f"/shards/{9 - seed}.tar"} for seed in range(3)]
    dataset = write_rows(tmp_path / "out", many)
    index_embeddings(dataset, tmp_path / "index")
    plain, indexed = loaded_session(dataset), loaded_session(dataset, index=tmp_path / "index")
    for place in (0, 41, 119):
        found = [Client(session).search(like=place, rows=5) for session in (plain, indexed)]
        assert [row["id"] for row in found[0]["rows"]] == [row["id"] for row in found[1]["rows"]]
        assert found[1]["rows"][0]["id"] == place and f"--index {tmp_path}/index" in found[1]["command"]
    few = Client(indexed).search(like=0, where="row = 7", rows=5)
    assert len(few["rows"]) == 3 == few["total"]
    for session in (plain, indexed):
        session.close()


def test_rows_are_shown_in_the_order_of_shards_and_rows(tmp_path):
    made = [{**part, "shard": "/a.parquet", "row": np.arange(6) + 6 * (1 - n)} for n, part in enumerate(parts(0) * 2)]
    session = loaded_session(write_rows(tmp_path / "out", made))
    rows = session.loaded.rows(row["id"] for row in Client(session).search()["rows"])
    assert [row["row"] for row in rows] == list(range(12))
    session.close()


def test_an_empty_dataset_is_loaded_and_says_that_it_is_empty(tmp_path):
    empty = {"image_embedding": np.empty((0, 8), np.float32), "caption": [], "d": 8}
    session = loaded_session(write_rows(tmp_path / "out", [empty], {"animals": [{"label": []}]}))
    assert session.state()["rows"] == 0 and session.state()["labels"] == {"animals": []}
    answer = Client(session).search(where="clip_score > 0")
    assert answer["rows"] == [] and answer["total"] == 0
    session.close()


def test_rows_without_a_vector_that_can_be_compared_are_shown_and_never_found(tmp_path):
    vectors = [[1.0, 0.0], None, [float("nan"), 1.0], [0.0, 1.0]]
    session = loaded_session(write_rows(tmp_path / "out", [{"image_embedding": vectors, "d": 2}]))
    client = Client(session)
    assert client.search()["total"] == 4
    assert [row["id"] for row in client.search(like=3)["rows"]] == [3, 0]
    assert client.post("/api/search", {"like": 2}).status == 400
    session.close()


def test_a_dataset_that_changes_while_it_is_loaded_is_a_sentence(tmp_path):
    session = Session(plan_browse(write_rows(tmp_path / "out", parts(0))))
    write_rows(tmp_path / "out", parts(1))
    session.load()
    assert "was replaced while" in session.failure and session.state()["ready"] is False
    answer = Client(session).post("/api/search", {})
    assert answer.status == 400 and "was replaced" in answer.json()["error"]


def test_a_model_that_is_gone_leaves_the_rest(tmp_path):
    session = loaded_session(write_rows(tmp_path / "out", parts(0)))  # its model is called `none`
    client = Client(session)
    answer = client.post("/api/search", {"text": "a cat"})
    assert answer.status == 400 and "words and pictures cannot be searched for" in answer.json()["error"]
    assert session.state()["words"] not in ("ready", "loading")
    assert client.search(like=0)["total"] == 6
    session.close()
