"""What storage does now and then and would not do again: timeouts, 5xx, throttling, broken connections."""

from __future__ import annotations

import asyncio
import errno
import logging
import random
import socket
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

_LOGGER = logging.getLogger(__name__)
_T = TypeVar("_T")

# Constants, not flags. Eight tries with 0.5, 1, 2, … 32 s between them bridge about a minute of an outage, on top of
# what the file systems' packages try themselves; where each try hangs until its timeout, PATIENCE ends it.
TRIES = 8
FIRST_WAIT, MAX_WAIT = 0.5, 32.0  # seconds
PATIENCE = 600.0  # seconds
_QUIET_TRIES = 2  # hiccups that are over at once are nobody's business

_STATUSES = {408, 425, 429, 500, 502, 503, 504}
_ERRNOS = {
    errno.EAGAIN,
    errno.EBUSY,  # s3fs for 503 and SlowDown
    errno.EIO,  # s3fs for what it has no name for
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
_NUMBERS = {FileNotFoundError: errno.ENOENT, PermissionError: errno.EACCES, TimeoutError: errno.ETIMEDOUT}
_TIMEOUTS = (TimeoutError, asyncio.TimeoutError)  # one and the same from Python 3.11 on


class FileChangedError(OSError):
    """A file that is not any more the one of which the first half was read."""


def retried(call: Callable[[], _T], what: str) -> _T:
    """Call, and call again after exponential waits while what it raises is transient.

    Args:
        call: without effect where it raises, or with one that a second call may have again.
        what: URI, for the warnings.
    Raises:
        OSError: the last one of `call`: at once if it is final, else when the tries are used up. What packages raise
            that is none, such as missing credentials, becomes one.
    """
    for wait in _waits():
        try:
            return call()
        except Exception as error:  # each file system has its own; what is not known to be transient goes on up
            if wait is None or not is_transient(error):
                final = _as_os_error(error, what)
                raise final from final.__cause__
            _pause(wait, what, error)
    raise AssertionError("the last wait is None")


def _as_os_error(error: Exception, what: str) -> Exception:
    """The same error, as Python itself would have raised it: an OSError with a number, a text and the file's name."""
    if isinstance(error, FileChangedError) or (type(error).__module__ == "builtins" and not isinstance(error, OSError)):
        return error
    if getattr(error, "errno", None) is not None and isinstance(error, OSError):
        error.filename = error.filename or what
        return error
    number = next((number for cls, number in _NUMBERS.items() if isinstance(error, cls)), errno.EIO)
    text = str(error) if isinstance(error, (PermissionError, FileNotFoundError)) else f"{type(error).__name__}: {error}"
    named = OSError(number, text.removesuffix(": "), what)
    named.__cause__ = error
    return named


def _pause(wait: tuple[int, float], what: str, error: Exception) -> None:
    number, seconds = wait
    if number > _QUIET_TRIES:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        _LOGGER.warning("%s: %s; trying again in %.0f s (%d of %d)", what, reason, seconds, number, TRIES - 1)
    time.sleep(seconds)


def _waits() -> Iterator[tuple[int, float] | None]:
    """(number, seconds) of the wait before the next try, with jitter, so that workers do not come back together; None
    where there is none.
    """
    start = time.monotonic()
    for number in range(1, TRIES):
        if time.monotonic() - start > PATIENCE:
            break
        yield number, min(MAX_WAIT, FIRST_WAIT * 2 ** (number - 1)) * random.uniform(0.5, 1)
    yield None


def is_transient(error: BaseException) -> bool:
    """Whether the same call may well succeed a little later."""
    chain = list(_chain(error))
    if any(isinstance(link, FileChangedError) for link in chain):
        return False
    for link in chain:
        if _is_of_the_network(link):  # before its status: S3 has a timeout of status 400, aiohttp a broken connection
            return True
        if (status := _status(link)) is not None:
            return status in _STATUSES
    return any(getattr(link, "errno", None) in _ERRNOS for link in chain)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what it was raised from: packages wrap what the network did in errors of their own."""
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _status(error: BaseException) -> int | None:
    """The HTTP status that an error tells, in the dialects of aiohttp, botocore, gcsfs and azure."""
    response = getattr(error, "response", None)
    metadata = response.get("ResponseMetadata", {}) if isinstance(response, dict) else {}
    found = [
        metadata.get("HTTPStatusCode"),
        *(getattr(error, name, None) for name in ("status", "status_code", "code")),
    ]
    return next((int(value) for value in found if str(value).isdigit() and 400 <= int(value) < 600), None)


def _is_of_the_network(error: BaseException) -> bool:
    if isinstance(error, (*_TIMEOUTS, ConnectionError)):
        return True
    if isinstance(error, socket.gaierror):
        return error.errno == socket.EAI_AGAIN
    return any(f"{cls.__module__}.{cls.__name__}" in _TRANSIENT for cls in type(error).__mro__)
