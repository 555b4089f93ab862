"""Fetch the images that a listing names. HTTP connects to the very address that was checked."""

from __future__ import annotations

import contextlib
import functools
import http.client
import os
import re
import socket
import ssl
import stat
import threading
from typing import IO, Any
from urllib.parse import quote, urljoin, urlsplit

from clip_transforms import storage
from clip_transforms.shards.batches import read_reject, read_up_to
from clip_transforms.shards.fence import Fence, FenceError
from clip_transforms.shards.inline import decode_inline, inline_name, is_inline

_BLOCK = 1 << 16  # bytes of a file that are asked for beyond its size
_TRIES = 3
_FIRST_WAIT = 0.5  # seconds, doubled after each try
_SILENCE = 20.0  # seconds without a byte
_AT_MOST = 60.0  # seconds for one try, even if bytes keep coming
_REDIRECTS = (301, 302, 303, 307, 308)
_MAX_REDIRECTS = 5
_DRIVE = re.compile(r"[A-Za-z]:[\\/](?!/)|\\\\")  # C:\\, C:/ or \\\\server


class TooLargeError(Exception):
    """The image has more bytes than the limit.

    Attributes:
        num_bytes: size of the image, if the server told it.
    """

    def __init__(self, num_bytes: int | None):
        super().__init__(num_bytes)
        self.num_bytes = num_bytes


class _StatusError(OSError):
    """The server answered with another status than 200."""

    def __init__(self, status: int):
        super().__init__(f"HTTP status {status}")
        self.status = status


def fetch_image(text: str, fence: Fence, limit: int, stopped: threading.Event) -> dict[str, Any]:
    """Fetch one image.

    Args:
        text: the URI as the listing has it, or the image itself as base64 or as a `data:` URI.
        fence: decides what is allowed.
        limit: maximum number of bytes.
        stopped: is set when the image is no longer wanted.
    Returns:
        A dict with `image` or `image_reject`.
    Raises:
        TooLargeError: if the image has more bytes.
    """
    try:
        if is_inline(text):
            return {"image": _decode(text, limit)}
        return {"image": _read(resolve(text, fence), fence, limit, stopped)}
    except FenceError as error:
        return {"image_reject": read_reject("not allowed", str(error), None)}
    # A URI that cannot be fetched is an error of the data, whichever exception its file system raises for it.
    except (OSError, http.client.HTTPException, ValueError) as error:
        if storage.is_of_the_machine(error):
            raise
        what = getattr(error, "strerror", None) or error
        return {"image_reject": read_reject("not fetched", f"{shown(text)}: {type(error).__name__}: {what}", None)}


def shown(text: str) -> str:
    """Return a URI as messages show it: without its query, which may hold a secret, and at most 200 characters long."""
    return inline_name(text) if is_inline(text) else text.partition("?")[0][:200]


def resolve(text: str, fence: Fence) -> str:
    """Return the absolute form of a URI of a listing, as `Fence.resolve` does, which may be a path of Windows.

    A back slash separates folders unless a file of this machine has it in its name.

    Raises:
        FenceError: if the URI is not allowed, or on a drive of Windows.
    """
    drive = _DRIVE.match(text)
    if not drive and ("\\" not in text or "://" in text):
        return fence.resolve(text)
    if storage.is_local(fence.root):
        literal = fence.resolve(text)
        if os.path.lexists(literal):
            return literal
    if drive:
        raise FenceError(f"{shown(text)} is on a drive of Windows; make the paths relative to the listing")
    return fence.resolve(text.replace("\\", "/"))


def _decode(text: str, limit: int) -> bytes:
    data = decode_inline(text)
    if len(data) > limit:
        raise TooLargeError(len(data))
    return data


def _read(uri: str, fence: Fence, limit: int, stopped: threading.Event) -> bytes:
    here = uri.startswith("/")
    if not here and not uri.startswith(("http://", "https://")):
        with storage.open_input(uri) as file:
            return _read_file(file, limit)
    for left in range(_TRIES - 1, -1, -1):
        try:
            return _read_local(uri, limit) if here else _read_http(uri, fence, limit)
        except (OSError, http.client.HTTPException) as error:
            # A file server that holds a lease on the file is told to give it back, and the next try succeeds.
            passes = isinstance(error, BlockingIOError) if here else storage.is_transient(error)
            if not left or not passes or stopped.wait(_FIRST_WAIT * 2 ** (_TRIES - 1 - left)):
                raise
    raise AssertionError("the last try returns or raises")


def _read_file(file: IO[bytes], limit: int) -> bytes:
    data = read_up_to(file, limit + 1)
    if len(data) > limit:
        raise TooLargeError(None)
    return data


def _read_local(path: str, limit: int) -> bytes:
    # Links were resolved when the path was checked, so a link here is new. O_NONBLOCK: never wait for a pipe.
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        state = os.fstat(handle)
        if not stat.S_ISREG(state.st_mode) and not stat.S_ISDIR(state.st_mode):  # reading a folder says what it is
            raise OSError("no regular file")
        # A file object would cost more than a small file.
        data = os.read(handle, min(state.st_size, limit) + 1)
        while len(data) <= limit and (more := os.read(handle, min(limit + 1 - len(data), _BLOCK))):
            data += more
    finally:
        os.close(handle)
    if len(data) > limit:
        raise TooLargeError(None)
    return data


def _read_http(uri: str, fence: Fence, limit: int) -> bytes:
    place = uri
    for _ in range(_MAX_REDIRECTS + 1):
        target = _get(place, fence, limit)
        if isinstance(target, bytes):
            return target
        place = fence.follow(urljoin(place, target))
        if not place.startswith(("http://", "https://")):
            raise FenceError(f"{shown(uri)} redirects to another scheme than http and https")
    raise FenceError(f"{shown(uri)} redirects more than {_MAX_REDIRECTS} times")


def _get(uri: str, fence: Fence, limit: int) -> bytes | str:
    """Return the body, or the target of a redirect."""
    split = urlsplit(uri)
    host = split.hostname or ""  # the fence refuses a URI without one
    host = host if host.isascii() else host.encode("idna").decode()
    port = split.port or (443 if split.scheme == "https" else 80)
    connection = _connect(split.scheme, host, port, fence.addresses(host, port))
    # Without this, a server that sends a byte now and then would keep a thread busy for ever.
    hung_up = threading.Event()
    watch = threading.Timer(_AT_MOST, _hang_up, [connection.sock, hung_up])
    watch.daemon = True
    watch.start()
    try:
        path = quote(split.path or "/", safe="/%:@!$&'()*+,;=~", errors="surrogateescape")
        query = quote(split.query, safe="/%:@!$&'()*+,;=~?[]", errors="surrogateescape")
        headers = {"User-Agent": "clip-transforms", "Accept-Encoding": "identity", "Connection": "close"}
        connection.request("GET", f"{path}?{query}" if query else path, headers=headers)
        response = connection.getresponse()
        if response.status in _REDIRECTS and (target := response.headers.get("Location")):
            return target
        if response.status != 200:
            raise _StatusError(response.status)
        if response.length is not None and response.length > limit:
            raise TooLargeError(response.length)
        data = _read_file(response, limit)
        if response.length:
            raise http.client.IncompleteRead(data, response.length)
        if hung_up.is_set():  # an answer without a length looks complete
            raise TimeoutError(f"not all of it came within {_AT_MOST:.0f} s")
        return data
    finally:
        watch.cancel()
        connection.close()


def _connect(scheme: str, host: str, port: int, addresses: list[str]) -> http.client.HTTPConnection:
    """Connect to one of the addresses that were checked; the name is not resolved again."""
    connection = http.client.HTTPConnection(host, port)
    error: OSError = OSError(f"{host} has no address")
    for address in addresses:
        try:
            connection.sock = socket.create_connection((address, port), _SILENCE)
            if scheme == "https":
                connection.sock = _tls().wrap_socket(connection.sock, server_hostname=host)
            return connection
        except OSError as found:
            connection.close()
            if storage.is_of_the_machine(found):
                raise
            error = found
    raise error


@functools.lru_cache(maxsize=1)
def _tls() -> ssl.SSLContext:
    return ssl.create_default_context()


def _hang_up(sock: socket.socket, hung_up: threading.Event) -> None:
    hung_up.set()
    with contextlib.suppress(OSError):  # the socket is closed already
        sock.shutdown(socket.SHUT_RDWR)
