"""Transient errors are tried again and final ones are not; the errors are those that the packages really raise."""

import asyncio
import errno
import functools
import logging
import socket

import pyarrow as pa
import pytest

from clip_transforms import storage
from clip_transforms.storage import FileChangedError, is_of_the_machine, is_transient, retried, retry


def boto(status, code="x"):
    from botocore.exceptions import ClientError

    return ClientError({"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}, "GetObject")


def translated(status, code):
    from s3fs.errors import translate_boto_error

    return translate_boto_error(boto(status, code))


def of_aiohttp(name, *args, **kwargs):
    import aiohttp

    return getattr(aiohttp, name)(*args, **kwargs)


def caused(error, cause):
    error.__cause__ = cause
    return error


def of_google(code):
    error = OSError(f"{code}, message")
    error.code = code
    return error


TRANSIENT = {
    "timeout": lambda: TimeoutError(),
    "timeout of asyncio": lambda: asyncio.TimeoutError(),
    "broken pipe": lambda: BrokenPipeError(),
    "reset": lambda: ConnectionResetError(),
    "no route": lambda: OSError(errno.EHOSTUNREACH, "no route to host"),
    "S3 500": lambda: translated(500, "InternalError"),
    "S3 503": lambda: translated(503, "SlowDown"),
    "S3 503 of HEAD": lambda: translated(503, "503"),
    "S3 502 without a name": lambda: translated(502, "502"),
    "S3 timeout of status 400": lambda: translated(400, "RequestTimeout"),
    "S3 unknown": lambda: OSError(errno.EIO, "?"),
    "body cut short": lambda: of_aiohttp("ClientPayloadError", "not completed"),
    "server gone": lambda: of_aiohttp("ServerDisconnectedError"),
    "http 429": lambda: of_aiohttp("ClientResponseError", None, (), status=429),
    "http says not found for a broken connection": lambda: caused(
        FileNotFoundError("x"), of_aiohttp("ServerDisconnectedError")
    ),
    "name server does not answer": lambda: caused(
        OSError("Cannot connect"), socket.gaierror(socket.EAI_AGAIN, "temporary failure")
    ),
    "gs 503": lambda: of_google(503),
    "gs 408": lambda: of_google("408"),
}
FINAL = {
    "not found": lambda: FileNotFoundError("x"),
    "forbidden": lambda: PermissionError("x"),
    "disk full": lambda: OSError(errno.ENOSPC, "x"),
    "read-only": lambda: OSError(errno.EROFS, "x"),
    "S3 403": lambda: translated(403, "AccessDenied"),
    "S3 404": lambda: translated(404, "NoSuchKey"),
    "S3 bad key": lambda: translated(403, "InvalidAccessKeyId"),
    "S3 400 without a name": lambda: translated(400, "Whatever"),
    "http 401": lambda: of_aiohttp("ClientResponseError", None, (), status=401),
    "gs 403": lambda: of_google(403),
    "changed": lambda: caused(FileChangedError("x"), TimeoutError()),
    "a bug": lambda: TypeError("x"),
    "no such host": lambda: caused(ConnectionError("Cannot connect"), socket.gaierror(socket.EAI_NONAME, "not known")),
    "no descriptors behind a broken connection": lambda: caused(ConnectionError("x"), OSError(errno.EMFILE, "x")),
}


@pytest.mark.parametrize("name", TRANSIENT)
def test_transient(name):
    assert is_transient(TRANSIENT[name]())


@pytest.mark.parametrize("name", FINAL)
def test_final(name):
    assert not is_transient(FINAL[name]())


MACHINE = {
    "memory": lambda: MemoryError(),
    "memory of Arrow": lambda: pa.ArrowMemoryError("malloc of size 64 failed"),
    "memory of the name server": lambda: socket.gaierror(socket.EAI_MEMORY, "Memory allocation failure"),
    "threads": lambda: RuntimeError("can't start new thread"),
    "wrapped by a package": lambda: caused(ValueError("cannot be opened"), OSError(errno.ENFILE, "x")),
    **{
        name: functools.partial(OSError, getattr(errno, name), "x") for name in ("ENOMEM", "EMFILE", "ENOSPC", "EDQUOT")
    },
}
DATA = {
    "bad sectors, or a remote error without a number": lambda: OSError(errno.EIO, "x"),
    "forbidden": lambda: PermissionError(errno.EACCES, "x"),
    "gone": lambda: FileNotFoundError(errno.ENOENT, "x"),
    "damaged": lambda: pa.ArrowInvalid("x"),
    "no such host": lambda: socket.gaierror(socket.EAI_NONAME, "x"),
    "cut off": lambda: EOFError("x"),
    "too deep": lambda: RecursionError("x"),
    "text": lambda: RuntimeError("another"),
}


@pytest.mark.parametrize("name", MACHINE)
def test_running_out_of_something_is_of_the_machine(name):
    assert is_of_the_machine(MACHINE[name]()) and not is_transient(MACHINE[name]())


@pytest.mark.parametrize("name", DATA)
def test_other_errors_are_not_of_the_machine(name):
    assert not is_of_the_machine(DATA[name]())


@pytest.fixture
def sleeps(monkeypatch):
    found = []
    monkeypatch.setattr(retry.time, "sleep", found.append)
    return found


def failing(times, error):
    left = [error] * times

    def call():
        if left:
            raise left.pop()
        return "done"

    return call


def test_waits_double_with_jitter_up_to_a_bound(sleeps):
    assert retried(failing(7, TimeoutError()), "x") == "done"
    assert all(0.25 * 2**i <= seconds <= 0.5 * 2**i for i, seconds in enumerate(sleeps)) and len(sleeps) == 7
    assert len({seconds / 2**i for i, seconds in enumerate(sleeps)}) == 7, "no jitter"


def test_the_eighth_failure_is_the_last_and_names_the_file(sleeps):
    with pytest.raises(TimeoutError) as caught:
        retried(failing(8, TimeoutError("slow")), "s3://bucket/x")
    assert caught.value.filename == "s3://bucket/x" and len(sleeps) == 7


def test_a_final_error_is_not_tried_again(sleeps):
    with pytest.raises(PermissionError):
        retried(failing(1, PermissionError("no")), "x")
    assert sleeps == []


def test_a_server_that_hangs_at_every_try_is_given_up_after_some_minutes(sleeps, monkeypatch):
    clock = iter(range(0, 10_000, 250))  # seconds
    monkeypatch.setattr(retry.time, "monotonic", lambda: next(clock))
    with pytest.raises(TimeoutError):
        retried(failing(99, TimeoutError()), "x")
    assert len(sleeps) == 2


def test_errors_of_packages_become_os_errors_that_readers_can_catch():
    from botocore.exceptions import NoCredentialsError

    with pytest.raises(OSError, match="NoCredentialsError: Unable to locate credentials: 's3://bucket/x'"):
        retried(failing(1, NoCredentialsError()), "s3://bucket/x")
    with pytest.raises(TypeError):  # ours, and no fault of storage
        retried(failing(1, TypeError("a bug")), "x")


def test_a_short_failure_is_quiet_and_a_long_one_is_logged(sleeps, caplog):
    with caplog.at_level(logging.WARNING):
        retried(failing(2, TimeoutError()), "s3://bucket/x")
        assert caplog.text == ""
        retried(failing(3, TimeoutError("slow")), "s3://bucket/x")
    (record,) = caplog.records
    assert "s3://bucket/x: TimeoutError: slow; trying again in" in record.getMessage()


@pytest.mark.parametrize(
    "look", [storage.exists, storage.read_bytes, storage.list_matching, storage.list_below, storage.list_folder]
)
def test_a_host_that_does_not_answer_is_no_missing_file(look, monkeypatch):
    """fsspec says FileNotFoundError."""
    pytest.importorskip("aiohttp")
    monkeypatch.setattr(retry, "TRIES", 1)
    with pytest.raises(OSError, match="Cannot connect to host 127.0.0.1") as failure:
        look("http://127.0.0.1:9/a.tar")  # of the discard protocol, which nobody serves
    assert not isinstance(failure.value, FileNotFoundError)
