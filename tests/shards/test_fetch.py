"""What a listing may fetch: nothing outside its fence, by no path, link, redirect, name or address."""

import contextlib
import http.server
import os
import socket
import threading
import time
from collections import Counter

import pytest
from conftest import picture
from reading import read

from clip_transforms.shards import fence as fence_module
from clip_transforms.shards import fetch
from clip_transforms.shards.fence import Fence, FenceError, is_public
from clip_transforms.shards.unit import ReaderOptions


@pytest.fixture
def listed(tmp_path):
    """A listing's folder, and things outside of it that a hostile listing would like to read."""
    folder = tmp_path / "listed"
    (folder / "sub").mkdir(parents=True)
    (folder / "a.jpg").write_bytes(b"inside")
    (tmp_path / "listed-too").mkdir()
    for place in (tmp_path / "secret.jpg", tmp_path / "listed-too" / "secret.jpg"):
        place.write_bytes(b"secret")
    (folder / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    (folder / "inner.jpg").symlink_to(folder / "a.jpg")
    (folder / "up").symlink_to(tmp_path)
    os.mkfifo(folder / "pipe.jpg")
    return folder


def fetched(folder, tmp_path, *uris, **options):
    (folder / "l.csv").write_text("\n".join(["uri", *uris]))
    rows, _, errors = read(folder / "l.csv", tmp_path, ReaderOptions(**options))
    assert not errors and len(rows) == len(uris)
    return [row["image"] or row["image_reject"]["reason"] for row in rows]


@pytest.mark.parametrize("uri", ["a.jpg", "./a.jpg", "sub/../a.jpg", "{}/a.jpg", "file://{}/a.jpg", "inner.jpg"])
def test_what_lies_below_the_listing_is_read(uri, listed, tmp_path):
    assert fetched(listed, tmp_path, uri.format(listed)) == [b"inside"]


OUTSIDE = [
    "../secret.jpg",
    "sub/../../secret.jpg",
    "{parent}/secret.jpg",
    "file://{parent}/secret.jpg",
    "FILE://{parent}/secret.jpg",
    "../listed-too/secret.jpg",
    "link.jpg",
    "up/secret.jpg",
    "/etc/passwd",
    "//etc/passwd",
    "/proc/self/environ",
    ".",
    "s3://bucket/a.jpg",
    "memory://a.jpg",
    "github://org:repo@/a.jpg",
    "simplecache::file://{parent}/secret.jpg",
    "zip://a.jpg::{parent}/x.zip",
    "http://127.0.0.1/a.jpg",
    "ftp://127.0.0.1/a.jpg",
]


@pytest.mark.parametrize("uri", OUTSIDE)
def test_what_lies_outside_is_a_reject(uri, listed, tmp_path):
    found = fetched(listed, tmp_path, uri.format(parent=listed.parent))
    # A path that is none, such as `simplecache::…`, is looked for in the folder and not found.
    assert found == ["not fetched" if "::" in uri and not uri.startswith("zip") else "not allowed"]


@pytest.mark.parametrize("name", ["pipe.jpg", "sub", "gone.jpg", "a.jpg/b", "x" * 5000])
def test_what_is_no_file_is_a_reject_and_waits_for_nothing(name, listed, tmp_path):
    assert fetched(listed, tmp_path, name) == ["not fetched"]


def test_a_name_with_a_nul_is_a_reject(listed, tmp_path):
    assert fetched(listed, tmp_path, "a\0.jpg") == ["not allowed"]


def test_a_prefix_permits_its_folder_and_no_neighbour(listed, tmp_path):
    uris = ("../secret.jpg", "../listed-too/secret.jpg", "link.jpg")
    assert fetched(listed, tmp_path, *uris, allow_uri=(str(tmp_path / "listed-too"),)) == [
        "not allowed",
        b"secret",
        "not allowed",
    ]
    assert fetched(listed, tmp_path, *uris, allow_uri=(f"file://{tmp_path}/",)) == [b"secret"] * 3


@pytest.mark.parametrize(
    "prefix, uri, allowed",
    [
        ("https://a.com/img/", "https://a.com/img/x.jpg", True),
        ("https://a.com/img", "https://A.com:443/img/x.jpg?size=1#f", True),
        ("https://a.com", "https://a.com/x.jpg", True),
        ("https://", "https://b.org/x.jpg", True),
        ("https://a.com", "https://a.com/File::x.jpg?of=b::c", True),
        ("http://[2001:db8::1]", "http://[2001:db8::1]/x.jpg", True),
        ("http://[2001:db8::1]", "http://[2001:db8::2]/x.jpg", False),
        ("https://a.com/img", "https://a.com/img-secret/x.jpg", False),
        ("https://a.com/img", "https://a.com/img/../x.jpg", False),
        ("https://a.com/img", "https://a.com/img/%2e%2E/x.jpg", False),
        ("https://a.com/img", "https://a.com/img/..%2fx.jpg", False),
        ("https://a.com/img", "https://a.com/img\\..\\x.jpg", False),
        ("https://a.com", "https://a.com.evil.org/x.jpg", False),
        ("https://a.com", "https://a.com@evil.org/x.jpg", False),
        ("https://a.com", "https://evil.org/a.com/x.jpg", False),
        ("https://a.com", "https://a.com:8443/x.jpg", False),
        ("https://a.com", "http://a.com/x.jpg", False),
        ("https://a.com", "ftp://a.com/x.jpg", False),
        ("https://a.com", "https://[a.com/x.jpg", False),
        ("https://a.com", "https://a.com:port/x.jpg", False),
        ("https://a.com", "https:///x.jpg", False),
        ("https://", "http://b.org/x.jpg", False),
        ("https://", "https://user:word@b.org/x.jpg", False),
        ("s3://bucket/img", "s3://bucket/img/x.jpg", True),
        ("s3://bucket/img", "s3://bucket/image.jpg", False),
        ("s3://bucket/img", "s3://bucket2/img/x.jpg", False),
        ("s3://bucket", "zip://x.jpg::s3://bucket/x.zip", False),
    ],
)
def test_which_uris_a_prefix_permits(prefix, uri, allowed):
    fence = Fence("/nowhere", (prefix,))
    if allowed:
        assert fence.resolve(uri) == uri
    else:
        with pytest.raises(FenceError):
            fence.resolve(uri)


def test_a_listing_of_an_object_store_reaches_no_file_of_this_machine():
    fence = Fence("s3://bucket/lists", ())
    assert fence.resolve("a.jpg") == "s3://bucket/lists/a.jpg"
    for uri in ("/etc/passwd", "file:///etc/passwd", "../a.jpg", "a/../../b.jpg", "s3://other/a.jpg"):
        with pytest.raises(FenceError):
            fence.resolve(uri)


@pytest.mark.parametrize("secret", ["https://a.com/x.jpg?token=SECRET", "https://me:SECRET@a.com/x.jpg"])
def test_no_message_holds_what_may_be_a_secret(secret):
    with pytest.raises(FenceError) as caught:
        Fence("/nowhere", ("https://b.com",)).resolve(secret)
    assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize(
    "address, public",
    [
        ("8.8.8.8", True),
        ("2606:4700::1111", True),
        ("127.0.0.1", False),
        ("10.1.2.3", False),
        ("192.168.0.1", False),
        ("172.16.0.1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("255.255.255.255", False),
        ("::1", False),
        ("::", False),
        ("fe80::1%eth0", False),
        ("fc00::1", False),
        ("ff02::1", False),
        ("::ffff:127.0.0.1", False),
        ("::ffff:8.8.8.8", True),
        ("2002:7f00:1::", False),
        ("64:ff9b::7f00:1", False),
        ("64:ff9b::a9fe:a9fe", False),
        ("64:ff9b:1::7f00:1", False),
        ("::127.0.0.1", False),
        ("fec0::1", False),
    ],
)
def test_which_addresses_are_public(address, public):
    assert is_public(address) is public


# Over HTTP, from a server of this test.


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


def test_pictures_come_over_http_in_order(get, server):
    assert get(*(f"{{}}/picture-{i}?n=ü {i}" for i in range(30))) == [picture(i) for i in range(30)]
    assert set(server.hosts) == {server.url.removeprefix("http://")}


@pytest.mark.parametrize("how", ["503", "500", "429", "short", "drop"])
def test_what_is_transient_is_tried_again(how, get, server):
    assert get(f"{{}}/flaky-2-{how}") == [picture(1)]
    assert server.asked[f"/flaky-2-{how}"] == 3
    assert get(f"{{}}/flaky-9-{how}") == ["not fetched"]
    assert server.asked[f"/flaky-9-{how}"] == 3


@pytest.mark.parametrize("code", ["403", "404", "410", "204", "304"])
def test_what_is_final_is_asked_for_once(code, get, server):
    assert get(f"{{}}/status-{code}") == ["not fetched"] and server.asked[f"/status-{code}"] == 1


def test_garbage_is_a_reject(get):
    assert get("{}/garbage") == ["not fetched"]


def test_the_limit_of_bytes_is_told_by_the_header_or_found_in_the_stream(get, server):
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
    """Whoever named the listing by its address has named the address."""
    fence, stopped = Fence(server.url), threading.Event()
    found = [
        fetch.fetch_image(uri, fence, 1 << 20, stopped)
        for uri in ("picture-1", f"{server.url}/picture-2", f"http://localhost:{server.server_port}/picture-3")
    ]
    assert [item.get("image") for item in found] == [picture(1), picture(2), None]
    assert found[2]["image_reject"]["reason"] == "not allowed"


def test_the_address_that_was_checked_is_the_one_that_is_asked(get, server, monkeypatch):
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
def test_a_server_that_stalls_is_left(how, get, server, monkeypatch):
    monkeypatch.setattr(fetch, "_SILENCE", 0.3)
    monkeypatch.setattr(fetch, "_AT_MOST", 0.6)
    start = time.monotonic()
    assert get(f"{{}}/{how}", "{}/picture-1") == ["not fetched", picture(1)]
    assert server.asked[f"/{how}"] == 3 and time.monotonic() - start < 8


def test_no_proxy_of_the_environment_is_asked(get, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1/")
    assert get("{}/picture-1") == [picture(1)]
