"""Tell what an error is about: a passing failure of storage, this machine, or the data."""

from __future__ import annotations

import asyncio
import errno
import socket
import zlib
from collections.abc import Iterator

_STATUSES = {408, 425, 429, 500, 502, 503, 504}
_TRANSIENT_NUMBERS = {
    errno.EAGAIN,
    errno.EBUSY,  # s3fs for 503 and SlowDown
    errno.EIO,  # s3fs for errors that it has no name for
    errno.EREMOTEIO,  # s3fs for 500
    errno.EPIPE,
    errno.ECONNABORTED,
    errno.ECONNREFUSED,
    errno.ECONNRESET,
    errno.EHOSTUNREACH,
    errno.ENETDOWN,
    errno.ENETUNREACH,
    errno.ETIMEDOUT,
}
# By name, since none of these packages need be installed.
_TRANSIENT = {
    "aiohttp.client_exceptions.ClientConnectionError",
    "aiohttp.client_exceptions.ClientPayloadError",
    "botocore.exceptions.ConnectionError",
    "botocore.exceptions.HTTPClientError",
    "botocore.exceptions.ResponseParserError",
    "google.auth.exceptions.TransportError",
    "http.client.IncompleteRead",
    "requests.exceptions.ChunkedEncodingError",
    "requests.exceptions.ConnectionError",
    "requests.exceptions.Timeout",
    "ssl.SSLEOFError",
    "urllib3.exceptions.ProtocolError",
    "urllib3.exceptions.TimeoutError",
}
_TIMEOUTS = (TimeoutError, asyncio.TimeoutError)  # the same class from Python 3.11 on

# Not EIO: on a local disk it means that one file lies on damaged sectors, and `retried` gives it to every remote error
# that has no number of its own. In both cases the other files can still be read.
_MACHINE_NUMBERS = {
    errno.ENOMEM,
    errno.ENOBUFS,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOSPC,  # reading can fill a disk too: local copies, and file systems that cache on it
    errno.EDQUOT,
}


_NO_MEMORY = ("bad_alloc", "not enough memory", "Cannot allocate memory", "malloc of size", "out of memory")


class FileChangedError(OSError):
    """The file was replaced or changed after its first bytes were read."""


def is_of_the_machine(error: BaseException) -> bool:
    """Return whether this machine ran out of something: memory, disk space, file descriptors or threads.

    Such an error says nothing about the data, so it must end the run: as a reject it would be committed, and every
    sample after it would be rejected too. The errors that it was raised from are looked at as well.
    """
    return any(_ran_out(link) for link in _chain(error))


def _ran_out(error: BaseException) -> bool:
    if isinstance(error, socket.gaierror):  # its numbers are of another kind
        return error.errno == socket.EAI_MEMORY
    if isinstance(error, OSError):
        # Arrow passes on what its libraries say of memory in an OSError without a number.
        said = str(error) if error.errno is None else ""
        return error.errno in _MACHINE_NUMBERS or any(words in said for words in _NO_MEMORY)
    if isinstance(error, zlib.error):
        return str(error).startswith("Error -4")  # Z_MEM_ERROR
    no_thread = isinstance(error, RuntimeError) and str(error).startswith("can't start new thread")
    return isinstance(error, MemoryError) or no_thread


def is_transient(error: BaseException) -> bool:
    """Return whether the same call may well succeed a little later."""
    chain = list(_chain(error))
    if any(isinstance(link, FileChangedError) or _ran_out(link) or _is_unknown_host(link) for link in chain):
        return False
    for link in chain:
        if _is_of_the_network(link):  # before its status: S3 has a timeout of status 400, aiohttp a broken connection
            return True
        if (status := _status(link)) is not None:
            return status in _STATUSES
    return any(getattr(link, "errno", None) in _TRANSIENT_NUMBERS for link in chain)


def unanswered(error: BaseException) -> BaseException | None:
    """Return the error of the network that an error was raised from; None if there is none."""
    return next((link for link in _chain(error) if _is_of_the_network(link) or isinstance(link, socket.gaierror)), None)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and the errors that it was raised from: packages wrap network errors in errors of their own."""
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _status(error: BaseException) -> int | None:
    """Return the HTTP status that an error holds, in the dialects of aiohttp, botocore, gcsfs and azure."""
    response = getattr(error, "response", None)
    metadata = response.get("ResponseMetadata", {}) if isinstance(response, dict) else {}
    found = [
        metadata.get("HTTPStatusCode"),
        *(getattr(error, name, None) for name in ("status", "status_code", "code")),
    ]
    statuses = (int(text) for text in map(str, found) if text.isdigit())
    return next((status for status in statuses if 400 <= status < 600), None)


def _is_unknown_host(error: BaseException) -> bool:
    """Return whether no host has that name; a name server that does not answer is another matter."""
    return isinstance(error, socket.gaierror) and error.errno != socket.EAI_AGAIN


def _is_of_the_network(error: BaseException) -> bool:
    if isinstance(error, (*_TIMEOUTS, ConnectionError)):
        return True
    if isinstance(error, socket.gaierror):
        return not _is_unknown_host(error)
    return any(f"{cls.__module__}.{cls.__name__}" in _TRANSIENT for cls in type(error).__mro__)
