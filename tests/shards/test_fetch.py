"""Images over HTTP: in order, tried again if that helps, and never from outside the fence."""

import contextlib
import http.server
import os
import socket
import threading
import time
from collections import Counter

import pytest
from conftest import picture
from reading import fetched, read

from clip_transforms.shards import fence as fence_module
from clip_transforms.shards import fetch
from clip_transforms.shards.fence import Fence
from clip_transforms.shards.unit import ReaderOptions
from schemas.samples import IMAGE_URI


@pytest.mark.parametrize("uri", ["a.jpg", "./a.jpg", "sub/../a.jpg", "{}/a.jpg", "file://{}/a.jpg", "inner.jpg"])
def test_files_below_the_listing_are_read(uri, listed, tmp_path):
    assert fetched(listed, tmp_path, uri.format(listed)) == [b"inside"]


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):  # noqa: N802
        server = self.server
        server.asked[self.path] += 1
        server.hosts.append(self.headers["Host"])
        name = self.path.partition("?")[0].strip("/")
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            getattr(self, f"do_{name.partition('-')[0]}")(*name.split("-")[1:])

    def send(self, body, status=200, length=None, **headers):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        for header, value in headers.items():
            self.send_header(header, value)
        self.end_headers()
        self.wfile.write(body)

    def do_picture(self, seed):
        self.send(picture(int(seed)))

    def do_status(self, code):
        self.send(b"<html>", int(code))

    def do_flaky(self, good_after, how):
        if self.server.asked[self.path] > int(good_after):
            self.send(picture(1))
        elif how == "short":
            self.send(picture(1)[:50], length=len(picture(1)))
            self.close_connection = True
        elif how == "drop":
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
        else:
            self.send(b"", int(how))

    def do_to(self, *where):
        self.send(b"", 302, Location=self.server.targets["-".join(where)])

    def do_long(self, length):
        self.send(b"", length=int(length))
        self.close_connection = True

    def do_chunked(self):
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for _ in range(100):
            self.wfile.write(b"1000\r\n" + b"x" * 4096 + b"\r\n")
        self.wfile.write(b"0\r\n\r\n")

    def do_drip(self):
        self.send_response(200)
        self.end_headers()
        for _ in range(200):
            self.wfile.write(b"x")
            self.wfile.flush()
            if self.server.closing.wait(0.05):
                break
        self.close_connection = True

    def do_silent(self):
        self.server.closing.wait(20)
        self.close_connection = True

    def do_garbage(self):
        self.wfile.write(b"\xff\xfe no HTTP at all\r\n\r\n")
        self.close_connection = True

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(fetch, "_FIRST_WAIT", 0.01)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.daemon_threads = True
        running.asked, running.hosts, running.targets = Counter(), [], {}
        running.closing = threading.Event()
        running.url = f"http://127.0.0.1:{running.server_port}"
        thread = threading.Thread(target=running.serve_forever, args=(0.02,))
        thread.start()
        yield running
        running.closing.set()
        running.shutdown()
        thread.join()


@pytest.fixture
def get(listed, tmp_path, server):
    def run(*uris, **options):
        options = {"allow_uri": (f"{server.url}/",), **options}
        return fetched(listed, tmp_path, *(uri.format(server.url) for uri in uris), **options)

    return run


@pytest.mark.parametrize("limit, taken", [(5, False), (6, True), (7, True)])
def test_a_file_of_this_machine_is_held_to_the_limit(limit, taken, listed, tmp_path):
    assert fetched(listed, tmp_path, "a.jpg", max_image_bytes=limit) == [b"inside" if taken else "image too large"]


@pytest.mark.parametrize("told", [0, 3, 6, 100])
def test_a_file_has_all_its_bytes_whatever_size_the_system_tells(told, listed, tmp_path, monkeypatch):
    """As of a file that grows, or one of /proc, whose size is said to be 0."""
    asked = os.fstat
    monkeypatch.setattr("clip_transforms.shards.fetch.os.fstat", lambda handle: _Sized(asked(handle), told))
    assert fetched(listed, tmp_path, "a.jpg") == [b"inside"]


@pytest.mark.parametrize("make, message", [(os.mkdir, "Is a directory"), (os.mkfifo, "no regular file")])
def test_what_is_no_file_is_refused_and_named(make, message, tmp_path):
    make(tmp_path / "x")
    got = fetch.fetch_image("x", Fence(str(tmp_path)), 100, threading.Event())["image_reject"]
    assert got["reason"] == "not fetched" and got["message"].endswith(message)


class _Sized:
    def __init__(self, state, size):
        self.st_mode, self.st_size = state.st_mode, size


def test_pictures_come_over_http_in_order(get, server):
    assert get(*(f"{{}}/picture-{i}?n=ü {i}" for i in range(30))) == [picture(i) for i in range(30)]
    assert set(server.hosts) == {server.url.removeprefix("http://")}


@pytest.mark.parametrize("how", ["503", "500", "429", "short", "drop"])
def test_a_transient_failure_is_tried_again(how, get, server):
    assert get(f"{{}}/flaky-2-{how}") == [picture(1)]
    assert server.asked[f"/flaky-2-{how}"] == 3
    assert get(f"{{}}/flaky-9-{how}") == ["not fetched"]
    assert server.asked[f"/flaky-9-{how}"] == 3


@pytest.mark.parametrize("code", ["403", "404", "410", "204", "304"])
def test_a_final_failure_is_not_tried_again(code, get, server):
    assert get(f"{{}}/status-{code}") == ["not fetched"] and server.asked[f"/status-{code}"] == 1


def test_the_uri_of_an_image_is_kept_for_its_reject_without_its_query(listed, tmp_path, server):
    (listed / "l.csv").write_text(f"uri\n{server.url}/picture-1?token=SECRET\n{server.url}/to-0?token=SECRET\n\n")
    server.targets["0"] = "to-0"
    rows, _, _ = read(listed / "l.csv", tmp_path, ReaderOptions(allow_uri=(f"{server.url}/",)))
    assert [row[IMAGE_URI] for row in rows] == [f"{server.url}/picture-1", f"{server.url}/to-0"]
    reject = rows[1]["image_reject"]
    assert reject["reason"] == "not allowed" and f"{server.url}/to-0" in reject["message"]
    assert "SECRET" not in reject["message"]


def test_garbage_is_a_reject(get):
    assert get("{}/garbage") == ["not fetched"]


def test_an_image_over_the_limit_is_found_by_its_header_or_while_it_is_read(get, server):
    assert get("{}/long-70000000", "{}/chunked", max_image_bytes=100_000) == ["image too large"] * 2
    assert server.asked["/long-70000000"] == 1


@pytest.mark.parametrize(
    "target, expected",
    [
        ("{}/picture-3", "picture"),
        ("/picture-3", "picture"),
        ("picture-3", "picture"),
        ("http://localhost:{port}/picture-3", "not allowed"),
        ("http://0.0.0.0:{port}/picture-3", "not allowed"),
        ("http://[::1]:{port}/picture-3", "not allowed"),
        ("http://169.254.169.254/latest/meta-data/", "not allowed"),
        ("https://127.0.0.1:{port}/picture-3", "not allowed"),
        ("file:///etc/passwd", "not allowed"),
        ("ftp://127.0.0.1/x", "not allowed"),
        ("//evil.example/x", "not allowed"),
        ("{}/to-0", "not allowed"),
    ],
)
def test_a_redirect_is_held_to_the_fence_too(target, expected, get, server):
    server.targets["0"] = target.format(server.url, port=server.server_port)
    assert get("{}/to-0") == [picture(3) if expected == "picture" else expected]


def test_a_public_name_that_resolves_to_a_private_address_is_refused(get, server, monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", rebinding([["127.0.0.1"], ["8.8.8.8", "127.0.0.1"]]))
    url = f"http://pictures.example:{server.server_port}"
    assert get(f"{url}/picture-1", allow_uri=(f"{url}/",)) == ["not allowed"]
    assert get(f"{url}/picture-1", allow_uri=("http://",)) == ["not allowed"]
    assert not server.asked


def test_a_listing_of_a_private_host_reaches_its_own_folder_and_no_other_host(server):
    """A user who gives a listing by its private address permits that address."""
    fence, stopped = Fence(server.url), threading.Event()
    found = [
        fetch.fetch_image(uri, fence, 1 << 20, stopped)
        for uri in ("picture-1", f"{server.url}/picture-2", f"http://localhost:{server.server_port}/picture-3")
    ]
    assert [item.get("image") for item in found] == [picture(1), picture(2), None]
    assert found[2]["image_reject"]["reason"] == "not allowed"


def test_the_connection_goes_to_the_address_that_was_checked(get, server, monkeypatch):
    # The second answer of the name server is the trap: whoever asks twice connects to it.
    resolver = rebinding([["127.0.0.1"], ["127.0.0.2"]])
    monkeypatch.setattr(fence_module.socket, "getaddrinfo", resolver)
    url = f"http://pictures.example:{server.server_port}"
    assert get(f"{url}/picture-1", allow_uri=(f"{url}/", "http://127.0.0.1/")) == [picture(1)]
    assert resolver.asked == ["pictures.example"] and server.hosts == [f"pictures.example:{server.server_port}"]


def rebinding(answers):
    original = socket.getaddrinfo

    def resolve(host, port, *args, **kwargs):
        if not isinstance(host, str) or not host.endswith(".example"):
            return original(host, port, *args, **kwargs)
        addresses = answers[min(len(resolve.asked), len(answers) - 1)]
        resolve.asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]

    resolve.asked = []
    return resolve


@pytest.mark.parametrize("how", ["drip", "silent"])
def test_a_server_that_stalls_is_given_up(how, get, server, monkeypatch):
    monkeypatch.setattr(fetch, "_SILENCE", 0.3)
    monkeypatch.setattr(fetch, "_AT_MOST", 0.6)
    start = time.monotonic()
    assert get(f"{{}}/{how}", "{}/picture-1") == ["not fetched", picture(1)]
    assert server.asked[f"/{how}"] == 3 and time.monotonic() - start < 8


def test_proxies_of_the_environment_are_not_used(get, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1/")
    assert get("{}/picture-1") == [picture(1)]
