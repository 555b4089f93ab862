"""Pictures from their sources: the right one, or why there is none; bounded, and what is looked at first."""

import io
import threading
import time

import numpy as np
import pytest
from browse_client import HOSTILE, Client, loaded_session, make_dataset
from conftest import make_folder, pair, picture, write_tar
from PIL import Image

from clip_transforms import embed_shards
from clip_transforms.browsing import pictures as module
from clip_transforms.browsing.pictures import Pictures, Shown, Want
from clip_transforms.shards.wanted import Picture


@pytest.fixture(scope="module")
def made(tmp_path_factory, tiny_checkpoint):
    return make_dataset(tmp_path_factory.mktemp("made"), tiny_checkpoint)


@pytest.fixture(scope="module")
def session(made):
    session = loaded_session(made / "out")
    yield session
    session.close()


def places(session):
    """Key → place of every row."""
    rows = session.loaded.rows(range(len(session.loaded.names)))
    return {row["key"]: place for place, row in enumerate(rows)}


def pixels(data):
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), np.float32)


@pytest.mark.parametrize(
    ("key", "seed", "size"), [("000007", 7, (40, 30)), ("000004.jpg", 4, (40, 30)), ("alone", 60, (300, 200))]
)
def test_the_picture_is_that_of_the_sample(session, key, seed, size):
    client, place = Client(session), places(session)[key]
    square, whole = (client.get(f"/picture/x/{kind}/{place}") for kind in ("square", "whole"))
    assert square.headers["content-type"] == whole.headers["content-type"] == "image/webp"
    assert pixels(square.body).shape == (256, 256, 3)
    source = Image.open(io.BytesIO(picture(seed, size=size))).convert("RGB")
    assert pixels(whole.body).shape == (size[1], size[0], 3)
    assert np.abs(pixels(whole.body) - np.asarray(source, np.float32)).mean() < 8  # WebP loses a little


def test_a_tall_picture_is_shown_whole_and_not_larger_than_allowed(tmp_path, spec):
    folder = tmp_path / "photos"
    make_folder(folder, 1)
    (folder / "tall.png").write_bytes(picture(3, size=(30, 3_000), format_="PNG"))
    embed_shards(folder, tmp_path / "out", spec)
    session = loaded_session(tmp_path / "out")
    shown = session.picture(places(session)["tall.png"], True).result(10)
    assert Image.open(io.BytesIO(shown.image)).size == (10, 1_024)
    session.close()


def test_a_row_without_a_picture_says_so(session):
    answer = Client(session).get(f"/picture/x/square/{places(session)['broken']}")
    assert (answer.status, answer.json()) == (404, {"lost": "no picture"})


def test_sources_that_are_gone_or_changed_are_named_and_come_back(tmp_path, spec, monkeypatch):
    monkeypatch.setattr(module, "_RETRY", 0.0)
    folder = tmp_path / "photos"
    make_folder(folder, 3)
    embed_shards(folder, tmp_path / "out", spec)
    session = loaded_session(tmp_path / "out")
    client = Client(session)
    (folder / "000001.jpg").rename(tmp_path / "away.jpg")
    (folder / "000002.jpg").write_bytes(picture(9))
    said = [client.get(f"/picture/x/square/{place}") for place in range(3)]
    assert [answer.status for answer in said] == [200, 404, 404]
    assert [answer.json()["lost"] for answer in said[1:]] == ["vanished", "changed"]
    (tmp_path / "away.jpg").rename(folder / "000001.jpg")
    assert client.get("/picture/x/square/1").status == 200
    session.close()


def test_pictures_of_a_tar_that_was_packed_anew_are_found_at_their_new_places(tmp_path, spec):
    members = [m for i in range(4) for m in pair(f"{i:06d}", i)]
    shard = write_tar(tmp_path / "a.tar", members)
    embed_shards(shard, tmp_path / "out", spec)
    session = loaded_session(tmp_path / "out")
    client = Client(session)
    assert client.get("/picture/x/square/0").status == 200  # from here on the old places are known
    write_tar(tmp_path / "a.tar", [(".hidden", b"x" * 5_000), *members])
    session.answer({})  # a page, whose pictures are read together
    assert [client.get(f"/picture/x/whole/{place}").status for place in range(4)] == [200] * 4
    assert [client.get(f"/picture/x/square/{place}").status for place in range(4)] == [200] * 4
    session.close()


def test_everything_known_of_a_sample_is_in_its_details(session, made):
    client, of = Client(session), places(session)
    known = client.get(f"/api/sample/{of['000004']}").json()
    assert known["name"] == "000004" and known["columns"]["kind"] == "1" and known["columns"]["width"] == 40
    assert known["columns"]["shard"] == str(made / "a.tar") and known["columns"]["row"] == 4
    assert [one["taxonomy"] for one in known["labels"]] == ["colors"] and len(known["labels"][0]["top"]) == 3
    assert abs(sum(one["probability"] for one in known["labels"][0]["top"]) - 1) < 1e-5
    assert known["file"] == "", "a tar has no file of a picture's own"
    torn = client.get(f"/api/sample/{of['broken']}").json()
    assert torn["rejects"] == [{"modality": "image", "reason": "truncated", "message": torn["rejects"][0]["message"]}]
    assert not torn["searchable"] and client.post("/api/search", {"like": of["broken"]}).status == 400
    long = client.get(f"/api/sample/{of['long']}").json()
    assert long["columns"]["caption"] == HOSTILE["long"].strip()


def test_a_picture_of_a_folder_names_its_file_while_it_is_there(tmp_path, spec):
    folder = tmp_path / "a#b"
    make_folder(folder / "2024", 2)
    embed_shards(folder, tmp_path / "out", spec)
    session = loaded_session(tmp_path / "out")
    client, of = Client(session), places(session)
    (folder / "2024" / "000001.jpg").unlink()
    named = [client.get(f"/api/sample/{of[f'2024/00000{i}.jpg']}").json()["file"] for i in range(2)]
    assert named == [str(folder / "2024" / "000000.jpg"), ""]
    session.close()


@pytest.mark.parametrize("path", ["/picture/x/square/999999999999", "/api/sample/34", "/picture/x/whole/34"])
def test_a_row_that_there_is_not_is_refused(session, path):
    assert Client(session).get(path).status == 400


def test_hostile_texts_stay_texts(session):
    rows = {row["key"]: row for row in Client(session).search(rows=200)["rows"]}
    assert {key: rows[key]["caption"] for key in HOSTILE if key != "long"} == {
        k: v for k, v in HOSTILE.items() if k != "long"
    }
    assert rows["long"]["caption"] == HOSTILE["long"][:400] + "…"


class Source:
    """Reads made pictures, and remembers what was asked for."""

    def __init__(self):
        self.reads, self.gate = [], threading.Event()
        self.gate.set()

    def __call__(self, part, shard, wanted):
        assert self.gate.wait(10)
        self.reads.append([one.row for one in wanted])
        for one in wanted:
            yield Picture(one.row, picture(one.row))


@pytest.fixture
def source(session, monkeypatch):
    monkeypatch.setattr(module, "_THREADS", 1)
    return Source()


def test_what_a_page_will_ask_for_is_read_at_once_and_only_once(session, source):
    shown = Pictures(session.loaded, source)
    shown.expect(range(5))
    assert [shown.ask(Want(place, False)).result(10).lost for place in (3, 1, 3)] == [""] * 3
    assert sum(source.reads, []) == [0, 1, 2, 3, 4]
    shown.close()


def test_a_newer_page_comes_first_and_the_older_one_is_dropped(session, source):
    source.gate.clear()
    shown = Pictures(session.loaded, source)
    first = shown.ask(Want(0, False))
    while not first.running():
        time.sleep(0.001)
    shown.expect([1, 2])
    shown.expect([5, 6])
    last = shown.ask(Want(10, False))
    source.gate.set()
    assert first.result(10).image and last.result(10).image
    assert source.reads == [[0], [5, 6, 10]]
    shown.close()


def test_the_cache_is_bounded_in_bytes(session, source):
    shown = Pictures(session.loaded, source, most_bytes=4_000)
    for place in range(20):
        assert shown.ask(Want(place, False)).result(10).image
        assert shown.size <= 4_000
    source.reads.clear()
    assert shown.ask(Want(19, False)).result(10).image and shown.ask(Want(0, False)).result(10).image
    assert source.reads == [[0]]
    shown.close()


def test_too_many_at_once_are_answered_all_the_same(session, source, monkeypatch):
    monkeypatch.setattr(module, "_MOST_WAITING", 2)
    source.gate.clear()
    shown = Pictures(session.loaded, source)
    futures = [shown.ask(Want(place, True)) for place in range(8)]
    source.gate.set()
    answers = [future.result(10) for future in futures]
    assert Shown(None, "too many at once") in answers and answers[-1].image
    shown.close()


def test_a_reader_that_fails_ends_no_thread(session, source, caplog):
    def fails(part, shard, wanted):
        yield Picture(wanted[0].row, picture(1))
        raise MemoryError("no room")

    shown = Pictures(session.loaded, fails)
    shown.expect([1, 2])
    assert shown.ask(Want(1, False)).result(10).image
    assert shown.ask(Want(2, False)).result(10) == Shown(None, "unreadable") and "no room" in caplog.text
    assert shown.ask(Want(3, False)).result(10).image
    shown.close()
