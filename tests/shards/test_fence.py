"""A listing reaches nothing outside its fence, by no path, link or address."""

import errno
import itertools
import json
import os
import pickle

import pytest
from reading import fetched, read

from clip_transforms.shards.fence import Fence, FenceError, is_public
from clip_transforms.shards.unit import ReaderOptions

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
def test_a_uri_outside_the_fence_is_a_reject(uri, listed, tmp_path):
    found = fetched(listed, tmp_path, uri.format(parent=listed.parent))
    # A path that is none, such as `simplecache::…`, is looked for in the folder and not found.
    assert found == ["not fetched" if "::" in uri and not uri.startswith("zip") else "not allowed"]


@pytest.mark.parametrize("name", ["pipe.jpg", "sub", "gone.jpg", "a.jpg/b", "x" * 5000])
def test_a_path_that_is_not_a_regular_file_is_rejected_at_once(name, listed, tmp_path):
    assert fetched(listed, tmp_path, name) == ["not fetched"]


@pytest.mark.parametrize("leases, found", [(2, b"inside"), (3, "not fetched")], ids=["given back", "kept"])
def test_a_picture_with_a_lease_is_tried_again(leases, found, listed, tmp_path, monkeypatch):
    """As on a disk that Samba serves: an open that may not wait fails while another machine holds the file."""
    opened, left = os.open, [errno.EAGAIN] * leases

    def leased(path, flags, *args, **kwargs):
        if flags & os.O_NONBLOCK and left:
            raise BlockingIOError(left.pop(), "Resource temporarily unavailable", path)
        return opened(path, flags, *args, **kwargs)

    monkeypatch.setattr(os, "open", leased)
    monkeypatch.setattr("clip_transforms.shards.fetch._FIRST_WAIT", 0.01)
    assert fetched(listed, tmp_path, "a.jpg") == [found]


def test_links_in_any_place_of_a_path_are_resolved(tmp_path):
    inside = tmp_path / "in"
    (inside / "a" / "b").mkdir(parents=True)
    (tmp_path / "out" / "b").mkdir(parents=True)
    for folder in (inside, inside / "a", inside / "a" / "b", tmp_path / "out", tmp_path / "out" / "b"):
        (folder / "x").write_bytes(b"")
    links = {"in/to-a": "a", "in/a/up": "..", "in/a/out": tmp_path / "out", "in/loop": "loop", "in/a/to-x": "../x"}
    links |= {"in/a/b/to-out": "../out/x", "out/back": inside / "a", "in/gone": "nowhere"}
    for name, target in links.items():
        (tmp_path / name).symlink_to(target)
    parts = ["a", "b", "x", "up", "out", "to-a", "to-x", "to-out", "loop", "back", "gone", "..", ".", "", "none"]
    fence, allowed = Fence(str(inside)), 0
    for path in ("/".join(names) for length in (1, 2, 3) for names in itertools.product(parts, repeat=length)):
        real = os.path.realpath(os.path.join(inside, path))
        if real.startswith(f"{inside}/"):
            allowed += 1
            assert fence.resolve(path) == real, path
        else:
            with pytest.raises(FenceError, match="lies outside"):
                fence.resolve(path)
    assert 500 < allowed < 3000


def test_a_file_uri_without_a_slash_starts_at_the_current_folder(tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    monkeypatch.chdir(tmp_path / "in")
    assert Fence(str(tmp_path / "in")).resolve("file://a.jpg") == f"{tmp_path}/in/a.jpg"
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FenceError, match=f"{tmp_path}/a.jpg lies outside"):
        Fence(str(tmp_path / "in")).resolve("file://a.jpg")


def test_a_fence_that_was_used_can_be_sent_to_a_worker(tmp_path):
    fence = Fence(str(tmp_path))
    assert fence.resolve("a.jpg") == pickle.loads(pickle.dumps(fence)).resolve("a.jpg") == f"{tmp_path}/a.jpg"


def test_a_name_with_a_nul_is_a_reject(listed, tmp_path):
    assert fetched(listed, tmp_path, "a\0.jpg") == ["not allowed"]


HALVES = {
    "\ud800.jpg": "not fetched",
    "sub/\ud800.jpg": "not fetched",
    "\ud800/a.jpg": "not fetched",
    "sub/../\udc00.jpg": "not fetched",
    "sub\\\ud800.jpg": "not fetched",
    "grün\ud800.jpg": "not fetched",
    "file://{folder}/\ud800.jpg": "not fetched",
    "{folder}/\ud800.jpg": "not fetched",
    "http://127.0.0.1:9/\ud800.jpg": "not fetched",
    "memory://halves/\ud800.jpg": "not fetched",
    "../\ud800.jpg": "not allowed",
    "{folder}/../\ud800/a.jpg": "not allowed",
    "file:///\ud800.jpg": "not allowed",
    "http://127.0.0.2/\ud800.jpg": "not allowed",
    "C:\\\ud800.jpg": "not allowed",
    "a.jpg": b"inside",
}


@pytest.mark.parametrize("kind", ["jsonl", "json"])
def test_half_a_surrogate_pair_in_a_uri_is_as_any_other_name(kind, listed, tmp_path):
    """No file has such a name, so nothing lies there; outside of the fence it is not even looked for."""
    rows = [json.dumps({"uri": uri.format(folder=listed)}) for uri in HALVES]
    (listed / f"l.{kind}").write_text("\n".join(rows) if kind == "jsonl" else f"[{','.join(rows)}]")
    permitted = ReaderOptions(allow_uri=("http://127.0.0.1:9/", "memory://halves/"))
    found, _, errors = read(listed / f"l.{kind}", tmp_path, permitted)
    found = [row["image"] or row["image_reject"]["reason"] for row in found]
    assert not errors and dict(zip(HALVES, found, strict=True)) == HALVES


@pytest.mark.parametrize("half", [b"\xed\xa0\x80", b"\xff"])
def test_bytes_that_are_not_utf8_in_a_uri_are_as_any_other_name(half, listed, tmp_path):
    (listed / "l.csv").write_bytes(b"uri\n" + half + b".jpg\nsub/" + half + b".jpg\n../" + half + b".jpg\n")
    rows, _, errors = read(listed / "l.csv", tmp_path)
    reasons = [row["image_reject"]["reason"] for row in rows]
    assert not errors and reasons == ["not fetched", "not fetched", "not allowed"]


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
def test_messages_hold_no_query_and_no_password(secret):
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
