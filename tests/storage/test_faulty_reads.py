"""A real S3 server and HTTP servers that fail: files are read to their end, from the byte where they broke off."""

import http.server
import io
import itertools
import json
import os
import re
import signal
import threading
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import ROOT
from forked import Process

from clip_transforms import storage
from clip_transforms.storage import reading, retry

FAULTS = ["500", "503", "hang", "cut", "slow", "reset", "deaf"]
DATA = os.urandom(300_000)


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(reading, "_BLOCK_BYTES", 20_000)


def upload(tmp_path, uri, data=DATA):
    (tmp_path / "upload").write_bytes(data)
    storage.commit_file(str(tmp_path / "upload"), uri)


def every_second(*kinds):
    """Let every second request fail, in each of the ways in turn."""
    ways = itertools.cycle(kinds)
    return lambda number, method, path: next(ways) if number % 2 == 0 else None


@pytest.mark.parametrize("size", [7_000, 50_000, -1], ids=["small pieces", "large pieces", "at once"])
def test_a_file_is_read_whole_however_often_its_server_fails(size, s3, tmp_path, small_blocks):
    upload(tmp_path, "s3://bucket/x")
    s3.seen.clear()
    s3.fault = every_second(*(FAULTS if size < 0 else [f for f in FAULTS if f != "hang"]))
    with storage.open_input("s3://bucket/x") as file:
        assert b"".join(iter(lambda: file.read(size), b"")) == DATA
    assert len(s3.faults()) > 6


def test_a_read_continues_at_the_byte_where_it_broke_off(s3, tmp_path, small_blocks):
    upload(tmp_path, "s3://bucket/x")
    got = 0

    def fault(number, method, path):
        return "cut" if method == "GET" and got > 150_000 and not s3.faults() else None

    s3.fault = fault
    with storage.open_input("s3://bucket/x") as file:
        while block := file.read(10_000):
            got += len(block)
    starts = [int(r[6:].partition("-")[0]) for r in s3.ranges if r]
    assert s3.faults() == ["cut"] and len(starts) > 5
    assert starts == sorted(starts) and len(starts) == len(set(starts)) + 1, "bytes were read twice"


def test_random_access_survives_failures_too(s3, tmp_path, small_blocks):
    table = pa.table({"a": range(20_000)})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=2_000)
    upload(tmp_path, "s3://bucket/a.parquet", (tmp_path / "a.parquet").read_bytes())
    s3.fault = every_second("cut", "503", "reset")
    with storage.open_input("s3://bucket/a.parquet") as file:
        assert pq.ParquetFile(file).read(use_threads=False).equals(table)
    assert len(s3.faults()) > 3


@pytest.mark.parametrize("size", [0, 1, len(DATA) - 1, len(DATA), len(DATA) + 1])
def test_the_end_of_a_file_is_read_here_and_elsewhere(size, s3, tmp_path):
    upload(tmp_path, "s3://bucket/x")
    (tmp_path / "x").write_bytes(DATA)
    s3.fault = every_second("cut", "503", "reset")
    expected = DATA[-size:] if size else b""
    assert storage.read_end("s3://bucket/x", size) == storage.read_end(str(tmp_path / "x"), size)
    assert storage.read_end(str(tmp_path / "x"), size) == (expected, len(DATA))


def test_the_end_of_a_file_that_comes_in_pieces_is_whole(tmp_path, monkeypatch):
    (tmp_path / "x").write_bytes(DATA)
    read = os.pread
    monkeypatch.setattr(os, "pread", lambda handle, size, place: read(handle, min(size, 7_000), place))
    assert storage.read_end(str(tmp_path / "x"), 50_000) == (DATA[-50_000:], len(DATA))


@pytest.mark.parametrize("broken", [True, False], ids=["between two connections", "on one connection"])
def test_a_file_that_changes_while_it_is_read_is_an_error(broken, s3, tmp_path, small_blocks):
    upload(tmp_path, "s3://bucket/x")
    with storage.open_input("s3://bucket/x") as file:
        assert file.read(5_000) == DATA[:5_000]
        upload(tmp_path, "s3://bucket/x", DATA[::-1])
        s3.fault = lambda number, method, path: "503" if broken and method == "GET" and not s3.faults() else None
        with pytest.raises(storage.FileChangedError, match="s3://bucket/x was changed while it was read"):
            while file.read(5_000):
                pass


@pytest.mark.parametrize("status, error", [("403", PermissionError), ("404", FileNotFoundError)])
def test_a_final_failure_is_not_tried_again(status, error, s3, tmp_path):
    upload(tmp_path, "s3://bucket/x")
    s3.seen.clear()
    s3.fault = lambda number, method, path: status if method == "GET" else None
    with pytest.raises(error):
        storage.read_bytes("s3://bucket/x")
    assert len(s3.faults()) == 1
    with pytest.raises(error), storage.open_input("s3://bucket/x") as file:
        file.read()
    assert len(s3.faults()) == 2


def test_finding_files_survives_failures(s3, tmp_path):
    for name in ("a/x.tar", "a/y.tar", "b"):
        upload(tmp_path, f"s3://bucket/{name}", name.encode())
    ways = itertools.cycle(["503", "reset", "cut", "500", "deaf"])
    s3.fault = lambda number, method, path: next(ways) if number % 3 == 0 else None
    assert [info.uri for info in storage.list_below("s3://bucket/a")] == ["s3://bucket/a/x.tar", "s3://bucket/a/y.tar"]
    assert [i.size for i in storage.list_matching("s3://bucket/a/*.tar")[0]] == [7, 7]
    assert storage.list_matching("s3://bucket/nothing") == ([], [], [])
    assert sorted(storage.names_in("s3://bucket/a")) == ["x.tar", "y.tar"]
    assert storage.exists("s3://bucket/b") and not storage.exists("s3://bucket/c")
    assert storage.is_folder("s3://bucket/a") and not storage.is_folder("s3://bucket/b")
    storage.remove("s3://bucket/a")
    storage.remove("s3://bucket/a")
    assert storage.names_in("s3://bucket") == ["b"]
    assert len(s3.faults()) > 5


def test_a_failure_is_not_taken_for_a_missing_file(s3, monkeypatch):
    monkeypatch.setattr(retry, "TRIES", 2)
    s3.fault = lambda *_: "503"
    for ask in (storage.exists, storage.is_folder, storage.list_below, storage.names_in, storage.list_matching):
        with pytest.raises(OSError):
            ask("s3://bucket/x")
    s3.fault = lambda *_: "403"
    with pytest.raises(PermissionError):
        storage.exists("s3://bucket/x")


class Folders(fsspec.AbstractFileSystem):
    """A file system that only implements `ls` and leaves the rest to fsspec."""

    protocol, broken = "folders", False

    def ls(self, path, detail=True, **kwargs):
        if path.endswith("deep") and self.broken:
            raise PermissionError(path)
        found = {"top": [("top/a.tar", "file"), ("top/deep", "directory")], "top/deep": [("top/deep/b.tar", "file")]}
        return [{"name": name, "type": type_, "size": 1} for name, type_ in found.get(path, [])]


def test_folders_that_fsspec_would_leave_out_are_found_or_named(monkeypatch):
    fsspec.register_implementation("folders", Folders, clobber=True)
    assert len(storage.list_below("folders://top")) == len(storage.list_matching("folders://top/**/*.tar")[0]) == 2
    monkeypatch.setattr(Folders, "broken", True)
    with pytest.raises(PermissionError):
        storage.list_below("folders://top")
    found = storage.list_matching("folders://top/**/*.tar")
    assert [file.uri for file in found.files] == ["folders://top/a.tar"]
    assert found.unlisted == [("folders://top/deep", "PermissionError: top/deep")]


class Pieces(io.BytesIO):
    """A file of which one read gives no more than `most` bytes."""

    def __init__(self, data, most):
        super().__init__(data)
        self.most = most or len(data)

    def read(self, size=-1):
        return super().read(min(size, self.most) if size >= 0 else self.most)


class Flaky(fsspec.AbstractFileSystem):
    """A file system whose first answers end early without an error, and which caches file information."""

    protocol, cachable = "flaky", False
    data, etag, remembered, opened, pieces = DATA, "1", None, 0, None

    def info(self, path, **kwargs):
        type(self).remembered = self.remembered or {"name": path, "size": len(DATA), "type": "file", "ETag": self.etag}
        return self.remembered

    def invalidate_cache(self, path=None):
        type(self).remembered = None

    def _open(self, path, mode="rb", **kwargs):
        type(self).opened += 1
        return Pieces(self.data[: 100_000 * self.opened], self.pieces)


@pytest.fixture
def flaky(monkeypatch):
    fsspec.register_implementation("flaky", Flaky, clobber=True)
    monkeypatch.setattr(retry, "FIRST_WAIT", 0.01)
    for name in ("data", "etag", "remembered", "opened", "pieces"):
        monkeypatch.setattr(Flaky, name, getattr(Flaky, name))
    return Flaky


def test_an_answer_that_ends_early_without_an_error_is_not_the_end_of_the_file(flaky):
    with storage.open_input("flaky://x") as file:
        assert file.read() == DATA
    assert flaky.opened == 3


def test_a_change_is_seen_even_if_the_file_system_caches_the_old_file(flaky):
    with storage.open_input("flaky://x") as file:
        file.read(90_000)
        flaky.data, flaky.etag = DATA[::-1], "2"
        with pytest.raises(storage.FileChangedError):
            file.read()


@pytest.mark.parametrize("size", [1, 99_999, 250_000, 300_000, 300_001])
@pytest.mark.parametrize("place", ["here", "a file system that reads short"])
def test_a_read_returns_all_bytes_asked_for_unless_the_file_ends(place, size, flaky, tmp_path):
    (tmp_path / "x").write_bytes(DATA)
    flaky.pieces = 1_000
    with storage.open_input(str(tmp_path / "x") if place == "here" else "flaky://x") as file:
        assert file.read(size) == DATA[:size]
        assert file.read() == DATA[size:] and file.read(size) == b""


# Uploads


@pytest.mark.parametrize("kind", ["503", "reset", "hang", "deaf", "500"])
def test_an_upload_that_breaks_off_is_tried_again(kind, s3, tmp_path):
    s3.fault = lambda number, method, path: kind if method == "PUT" and len(s3.faults()) < 2 else None
    upload(tmp_path, "s3://bucket/x")
    assert s3.faults() == [kind] * 2 and storage.read_bytes("s3://bucket/x") == DATA
    assert not (tmp_path / "upload").exists()


@pytest.mark.parametrize("kind", ["403", "503"])
def test_an_upload_that_keeps_failing_leaves_no_object(kind, s3, tmp_path, monkeypatch):
    monkeypatch.setattr(retry, "TRIES", 3)
    s3.fault = lambda number, method, path: kind if method == "PUT" else None
    with pytest.raises(OSError):
        upload(tmp_path, "s3://bucket/x")
    assert len(s3.faults()) == (1 if kind == "403" else 3)
    s3.fault = lambda *_: None
    assert storage.names_in("s3://bucket") == [] and (tmp_path / "upload").exists()


@pytest.mark.parametrize("times", [1, 99], ids=["once", "for good"])
def test_a_large_upload_that_fails_in_a_part_is_aborted(times, s3, tmp_path, monkeypatch):
    import s3fs.core

    monkeypatch.setattr(retry, "TRIES", 3)
    monkeypatch.setattr(s3fs.core, "calculate_chunksize", lambda *_, **__: 5 << 20)
    data = os.urandom(12 << 20)

    def fault(number, method, path):
        return "503" if "partNumber=2" in path and len(s3.faults()) < times else None

    s3.fault = fault
    if times == 1:
        upload(tmp_path, "s3://bucket/x", data)
        assert storage.read_bytes("s3://bucket/x") == data
    else:
        with pytest.raises(OSError):
            upload(tmp_path, "s3://bucket/x", data)
        assert storage.names_in("s3://bucket") == []
    assert len([m for m, path, _ in s3.seen if m == "DELETE" and "uploadId" in path]) == (1 if times == 1 else 3)
    assert s3.fs.call_s3("list_multipart_uploads", Bucket="bucket").get("Uploads", []) == []


UPLOADING = """
import sys, fsspec, s3fs.core
from clip_transforms import storage
fsspec.config.conf["s3"] = {"endpoint_url": sys.argv[1]}
s3fs.core.calculate_chunksize = lambda *_, **__: 5 << 20
storage.commit_file(sys.argv[2], "s3://bucket/x")
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=lambda number: number.name)
def test_a_large_upload_that_is_killed_leaves_no_object_and_its_pieces_can_be_removed(number, s3, tmp_path):
    (tmp_path / "upload").write_bytes(os.urandom(12 << 20))
    in_the_middle = threading.Event()

    def fault(number, method, path):
        if "partNumber=3" in path:
            in_the_middle.set()
            return "hang"

    s3.fault = fault
    with Process("-c", UPLOADING, s3.url, str(tmp_path / "upload"), cwd=ROOT) as process:
        assert in_the_middle.wait(60)
        process.send_signal(number)
        assert process.wait(60) == -number
    s3.fault = lambda *_: None
    assert storage.names_in("s3://bucket") == []
    assert len(s3.fs.call_s3("list_multipart_uploads", Bucket="bucket")["Uploads"]) == 1, "as troubleshooting.md says"
    s3.fs.clear_multipart_uploads("bucket")
    assert s3.fs.call_s3("list_multipart_uploads", Bucket="bucket").get("Uploads", []) == []


def test_the_rule_of_the_documents_that_removes_pieces_of_uploads_is_accepted(s3):
    text = Path(ROOT, "docs", "troubleshooting.md").read_text()
    rule = json.loads(re.search(r"--lifecycle-configuration \\\n +'(.*)'", text)[1])
    s3.fs.call_s3("put_bucket_lifecycle_configuration", Bucket="bucket", LifecycleConfiguration=rule)
    (found,) = s3.fs.call_s3("get_bucket_lifecycle_configuration", Bucket="bucket")["Rules"]
    assert found["AbortIncompleteMultipartUpload"] == {"DaysAfterInitiation": 7} and found["Status"] == "Enabled"


# A plain HTTP server


@pytest.fixture
def http_server():
    """A server that does not support ranges and truncates its first two answers."""
    answers = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def do_HEAD(self):  # noqa: N802
            self.send_response(200)
            self.send_header("Content-Length", len(DATA))
            self.send_header("ETag", '"1"')
            self.send_header("Accept-Ranges", "none")
            self.end_headers()

        def do_GET(self):  # noqa: N802
            self.do_HEAD()
            answers.append(1)
            self.wfile.write(DATA if len(answers) > 2 else DATA[: 100_000 * len(answers)])

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/x"
    server.shutdown()
    server.server_close()


def test_a_server_without_ranges_is_read_again_up_to_the_byte(http_server, monkeypatch):
    monkeypatch.setattr(retry, "FIRST_WAIT", 0.01)
    with storage.open_input(http_server) as file:
        assert b"".join(iter(lambda: file.read(30_000), b"")) == DATA
        with pytest.raises(OSError):
            file.seek(5)
