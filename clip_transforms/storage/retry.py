"""Try again after transient failures of storage: timeouts, 5xx, throttling, broken connections."""

from __future__ import annotations

import errno
import logging
import random
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from clip_transforms.storage.errors import FileChangedError, is_transient, unanswered

_LOGGER = logging.getLogger(__name__)
_T = TypeVar("_T")

# Constants, not flags. Eight tries with 0.5, 1, 2, … 32 s between them outlast an outage of about a minute, besides the
# retries of the file systems' own packages. If each try hangs until its timeout, PATIENCE ends the series.
TRIES = 8
FIRST_WAIT, MAX_WAIT = 0.5, 32.0  # seconds
PATIENCE = 600.0  # seconds
_QUIET_TRIES = 2  # the first failures are not logged, since most are over at once

_NUMBERS = {FileNotFoundError: errno.ENOENT, PermissionError: errno.EACCES, TimeoutError: errno.ETIMEDOUT}


def retried(call: Callable[[], _T], what: str) -> _T:
    """Call a function, and again after exponential waits while its error is transient.

    Args:
        call: the function; it must be harmless to call it again after it raised.
        what: the URI, for warnings.
    Returns:
        The result of `call`.
    Raises:
        OSError: the last error of `call`: at once if it is final, else after the last try. Errors of packages that are
            not OSErrors, such as missing credentials, become OSErrors.
    """
    for wait in _waits():
        try:
            return call()
        except Exception as error:  # each file system raises its own; any that is not known to be transient is raised
            if wait is None or not is_transient(error):
                final = _as_os_error(error, what)
                raise final from final.__cause__
            _pause(wait, what, error)
    raise AssertionError("the last wait is None")


def _as_os_error(error: Exception, what: str) -> Exception:
    """Return the error as Python itself would raise it: an OSError with a number, a text and the name of the file."""
    if isinstance(error, FileChangedError) or (type(error).__module__ == "builtins" and not isinstance(error, OSError)):
        return error
    if getattr(error, "errno", None) is not None and isinstance(error, OSError):
        error.filename = error.filename or what
        return error
    if isinstance(error, FileNotFoundError) and (cause := unanswered(error)) is not None:
        # fsspec says of a host that does not answer that its files do not exist.
        named = OSError(errno.EHOSTUNREACH, f"no answer ({type(cause).__name__}: {cause})", what)
        named.__cause__ = error
        return named
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
    """Yield (number, seconds) of the wait before each next try, and at last None.

    The waits have jitter, so that workers do not all try again at the same moment.
    """
    start = time.monotonic()
    for number in range(1, TRIES):
        if time.monotonic() - start > PATIENCE:
            break
        yield number, min(MAX_WAIT, FIRST_WAIT * 2 ** (number - 1)) * random.uniform(0.5, 1)
    yield None
