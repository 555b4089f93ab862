"""What storage does now and then and would not do again: timeouts, 5xx, throttling, broken connections."""

from __future__ import annotations

import errno
import logging
import random
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from clip_transforms.storage.errors import FileChangedError, is_transient

_LOGGER = logging.getLogger(__name__)
_T = TypeVar("_T")

# Constants, not flags. Eight tries with 0.5, 1, 2, … 32 s between them bridge about a minute of an outage, on top of
# what the file systems' packages try themselves; where each try hangs until its timeout, PATIENCE ends it.
TRIES = 8
FIRST_WAIT, MAX_WAIT = 0.5, 32.0  # seconds
PATIENCE = 600.0  # seconds
_QUIET_TRIES = 2  # hiccups that are over at once are nobody's business

_NUMBERS = {FileNotFoundError: errno.ENOENT, PermissionError: errno.EACCES, TimeoutError: errno.ETIMEDOUT}


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
