"""Downloads of published checkpoints from a local server that breaks off, lies and stalls."""

import contextlib
import hashlib
import http.server
import os
import threading
import time

import pytest
import torch
from conftest import published_model

from clip_transforms.clip import downloads
from clip_transforms.clip.architectures import PUBLISHED, Published
from clip_transforms.clip.checkpoints import load
from clip_transforms.clip.model_spec import ClipSpec
from clip_transforms.clip.recognition import CheckpointError
from clip_transforms.clip.tensor_shapes import architecture_of

pytestmark = pytest.mark.timeout(60)
NAME = "ViT-B/32"


class Server:
    """Serves one body. Each request takes the next of `faults`; when none is left, the server behaves."""

    def __init__(self, body):
        self.body, self.faults, self.ranges = body, [], []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):  # noqa: N802
                outer.ranges.append(self.headers.get("Range"))
                (outer.faults.pop(0) if outer.faults else behave)(self, outer.body)
                self.close_connection = True

            def log_message(self, *_):
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self):
        self._server.shutdown()
        self._server.server_close()


def start_of(handler):
    return int((handler.headers.get("Range") or "bytes=0-")[6:].split("-")[0])


def answer(handler, status, body, length=None, **headers):
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.send_header("Content-Length", str(len(body) if length is None else length))
    handler.end_headers()
    with contextlib.suppress(ConnectionError):
        handler.wfile.write(body)


def behave(handler, body):
    start = start_of(handler)
    if start >= len(body) > 0:
        answer(handler, 416, b"", Content_Range=f"bytes */{len(body)}")
    elif start:
        answer(handler, 206, body[start:], Content_Range=f"bytes {start}-{len(body) - 1}/{len(body)}")
    else:
        answer(handler, 200, body)


def break_off(handler, body):
    start = start_of(handler)
    half = body[start : start + max(1, (len(body) - start) // 2)]
    headers = {"Content_Range": f"bytes {start}-{len(body) - 1}/{len(body)}"} if start else {}
    answer(handler, 206 if start else 200, half, len(body) - start, **headers)


def stall(handler, body):
    break_off(handler, body)
    time.sleep(1.5)


def say_nothing(handler, body):
    time.sleep(1.5)


def lie(handler, body):
    answer(handler, 200, b"<html>log in first</html>")


def ignore_ranges(handler, body):
    answer(handler, 200, body)


def busy(handler, body):
    answer(handler, 503, b"later")


def gone(handler, body):
    answer(handler, 404, b"no")


STATE = {name: tensor.half() for name, tensor in published_model("vit", 0).state_dict().items()}


@pytest.fixture(scope="module")
def checkpoint_bytes(tmp_path_factory):
    path = tmp_path_factory.mktemp("published") / "model.pt"
    torch.save(STATE, path)
    return path.read_bytes()


@pytest.fixture
def server(checkpoint_bytes, tmp_path, monkeypatch):
    """A server whose body is the published ViT-B/32 for the length of a test."""
    found = Server(checkpoint_bytes)
    small = architecture_of({name: tuple(tensor.shape) for name, tensor in STATE.items()})
    known = Published(small, "ViT-B-32.pt", hashlib.sha256(checkpoint_bytes).hexdigest())
    monkeypatch.setitem(PUBLISHED, NAME, known)
    monkeypatch.setattr("clip_transforms.clip.architectures.URL_ROOT", found.url)
    monkeypatch.setenv("CLIP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(downloads, "_TIMEOUT_SECONDS", 0.5)
    monkeypatch.setattr(downloads, "_WAIT_SECONDS", 0.01)
    yield found
    found.close()


def files(tmp_path):
    return sorted(path.name for path in (tmp_path / "cache").iterdir())


def test_a_published_name_is_downloaded_once_and_loaded(server, tmp_path):
    model = load(NAME, "cpu")
    assert load("vit-b-32", "cpu").embed_captions("a cat").equal(model.embed_captions("a cat"))
    assert server.ranges == [None] and files(tmp_path) == ["ViT-B-32.pt"]


@pytest.mark.parametrize(
    "faults",
    [
        [break_off],
        [break_off, break_off, break_off],
        [stall],
        [busy],
        [break_off, busy, stall],
        [break_off, ignore_ranges],
    ],
    ids=["broken", "broken thrice", "stalled", "busy", "all of it", "a server without ranges"],
)
def test_a_broken_download_resumes_at_the_same_byte(faults, server, tmp_path, checkpoint_bytes):
    server.faults = list(faults)
    assert downloads.fetch(NAME).read_bytes() == checkpoint_bytes
    assert files(tmp_path) == ["ViT-B-32.pt"]
    starts = [int(r[6:-1]) if r else 0 for r in server.ranges]
    assert starts[-1] > 0 or faults == [busy]
    assert starts == sorted(starts)


def test_the_part_of_a_dead_download_is_taken_over(server, tmp_path, checkpoint_bytes):
    (tmp_path / "cache").mkdir()
    left = tmp_path / "cache" / "ViT-B-32.pt.0123.part"
    left.write_bytes(checkpoint_bytes[:1000])
    os.utime(left, (0, 0))
    alive = tmp_path / "cache" / "ViT-B-32.pt.4567.part"
    alive.write_bytes(b"somebody writes here")
    assert downloads.fetch(NAME).read_bytes() == checkpoint_bytes
    assert server.ranges == ["bytes=1000-"]
    assert files(tmp_path) == ["ViT-B-32.pt", alive.name]


@pytest.mark.parametrize("extra", [0, 7], ids=["whole", "too long"])
def test_a_part_that_is_whole_or_longer_ends_well(extra, server, tmp_path, checkpoint_bytes):
    (tmp_path / "cache").mkdir()
    left = tmp_path / "cache" / "ViT-B-32.pt.0123.part"
    left.write_bytes(checkpoint_bytes + b"x" * extra)
    os.utime(left, (0, 0))
    assert downloads.fetch(NAME).read_bytes() == checkpoint_bytes


def test_a_download_with_another_hash_is_deleted_and_reported(server, tmp_path):
    server.faults = [lie]
    with pytest.raises(CheckpointError, match=r"has SHA-256 \w+, not \w+, and was deleted"):
        downloads.fetch(NAME)
    assert files(tmp_path) == []


def test_a_cached_file_of_another_hash_is_deleted_and_downloaded_again(server, tmp_path, checkpoint_bytes, caplog):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "ViT-B-32.pt").write_bytes(b"cut off")
    assert downloads.fetch(NAME).read_bytes() == checkpoint_bytes
    assert "deleting it and downloading it again" in caplog.text


def test_several_at_once_all_end_with_the_whole_file(server, tmp_path, checkpoint_bytes):
    server.faults = [break_off] * 3
    found = []
    threads = [threading.Thread(target=lambda: found.append(downloads.fetch(NAME))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(found) == 4 and files(tmp_path) == ["ViT-B-32.pt"]
    assert found[0].read_bytes() == checkpoint_bytes


@pytest.mark.parametrize("fault, reason", [(gone, "404"), (busy, "503"), (say_nothing, "timed out")])
def test_a_failed_download_says_in_one_sentence_how_to_do_it_by_hand(fault, reason, server, tmp_path, monkeypatch):
    monkeypatch.setattr(downloads, "_ATTEMPTS", 2)
    server.body = b""  # so that no attempt makes progress
    server.faults = [fault] * 9
    with pytest.raises(CheckpointError, match="cannot be downloaded from http") as caught:
        downloads.fetch(NAME)
    sentence = str(caught.value)
    assert reason in sentence and f"save it as {tmp_path / 'cache' / 'ViT-B-32.pt'}" in sentence
    assert "\n" not in sentence and PUBLISHED[NAME].url in sentence
    assert len(server.ranges) == (1 if fault is gone else 2), "a final answer is not asked for again"
    assert files(tmp_path) == []


def test_a_full_disk_is_not_reported_as_a_broken_network(server, tmp_path, monkeypatch):
    (tmp_path / "cache").mkdir()
    part = tmp_path / "cache" / "ViT-B-32.pt.full.part"
    part.symlink_to("/dev/full")  # every write there fails as on a full disk
    monkeypatch.setattr(downloads, "_claim", lambda target: part)
    with pytest.raises(CheckpointError, match=f"cannot be saved in {tmp_path}/cache .No space left on device.; set"):
        downloads.fetch(NAME)
    assert server.ranges == [None], "the bytes are asked for once, since another try does not make room"


def test_a_missing_network_is_reported_at_once(server, tmp_path):
    server.close()
    start = time.monotonic()
    with pytest.raises(CheckpointError, match="cannot be downloaded"):
        downloads.fetch(NAME)
    assert server.ranges == []
    assert time.monotonic() - start < 20


def test_a_server_that_never_stops_sending_is_cut_off(server, tmp_path, monkeypatch):
    monkeypatch.setattr(downloads, "_MAX_BYTES", 1 << 20)
    with pytest.raises(CheckpointError, match="sends more than"):
        downloads.fetch(NAME)


def test_resolving_a_published_name_downloads_nothing(server, tmp_path):
    checkpoint = ClipSpec(NAME).resolve()
    assert checkpoint.sha256 == PUBLISHED[NAME].sha256 and checkpoint.activation == "quick_gelu"
    assert server.ranges == [] and not (tmp_path / "cache").exists()


@pytest.mark.parametrize("flags, requests", [(["--dry_run"], 0), ([], 1)], ids=["dry run", "run"])
def test_a_dry_run_downloads_nothing_and_a_run_once(flags, requests, server, tmp_path):
    from conftest import make_tar

    from pipelines import embed

    make_tar(tmp_path / "a.tar", 2)
    argv = ["--input", str(tmp_path / "a.tar"), "--output", str(tmp_path / "out"), "--model", NAME, *flags]
    assert embed.main(argv) == 0
    assert len(server.ranges) == requests


def test_the_default_cache_is_in_the_users_cache_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("CLIP_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert downloads.cache_folder() == tmp_path / "clip"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/me")
    assert str(downloads.cache_folder()) == "/home/me/.cache/clip"


def a_file(path):
    path.write_bytes(b"")


def a_link_to_nothing(path):
    path.symlink_to(path.with_name("nothing") / "at all")


@pytest.mark.parametrize("make", [a_file, a_link_to_nothing])
def test_a_cache_that_is_no_folder_is_not_reported_as_a_missing_network(make, server, tmp_path):
    make(tmp_path / "cache")
    with pytest.raises(
        CheckpointError, match=f"cannot be saved in {tmp_path}/cache .*set CLIP_CACHE to a writable folder"
    ):
        load(NAME, "cpu")
    assert server.ranges == []


def test_the_cache_may_be_named_from_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("CLIP_CACHE", "~/models")
    assert downloads.cache_folder() == tmp_path / "models"


def test_a_download_that_is_still_trying_is_not_taken_over():
    attempts = range(downloads._ATTEMPTS)
    trying = sum(downloads._TIMEOUT_SECONDS + downloads._WAIT_SECONDS * 2 ** (n + 1) for n in attempts)
    assert downloads._ABANDONED_SECONDS > 2 * trying
