"""The cache of OpenAI's published checkpoints: each is downloaded once, resumed after interruptions, and verified."""

from __future__ import annotations

import contextlib
import http.client
import logging
import os
import secrets
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from clip_transforms import storage
from clip_transforms.clip.architectures import PUBLISHED, Published
from clip_transforms.clip.recognition import CheckpointError

_TIMEOUT_SECONDS = 30.0  # without a byte
_ATTEMPTS = 6  # in a row, without a byte of progress
_WAIT_SECONDS = 0.5  # before the second attempt; doubled after each further attempt
_ABANDONED_SECONDS = 600.0  # a part untouched for this long may be taken over; all attempts together take 243 s
_BLOCK = 1 << 20
_MAX_BYTES = 8 << 30  # stops a server that never ends; the largest checkpoint has 1.3 GB
_LOGGER = logging.getLogger(__name__)


def cache_folder() -> Path:
    """Return `$CLIP_CACHE`, else `clip` in the user's cache folder, which OpenAI's own code uses too.

    Raises:
        CheckpointError: if there is no home folder and no setting.
    """
    try:
        if folder := os.environ.get("CLIP_CACHE"):
            return Path(folder).expanduser()
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "clip"
    except RuntimeError:
        raise CheckpointError("there is no home folder to keep checkpoints in; set CLIP_CACHE to a folder") from None


def cached(name: str) -> Path | None:
    """Return a published model's file in the cache, or None; the file is not verified here."""
    path = cache_folder() / PUBLISHED[name].file
    return path if path.is_file() else None


def fetch(name: str) -> Path:
    """Return a published model's verified file, downloading it into the cache if needed.

    Several processes may do this at once: each writes to a file name of its own, and the last rename wins.

    Args:
        name: a key of PUBLISHED.
    Raises:
        CheckpointError: if the file is not in the cache and cannot be downloaded; the message says what to do by hand.
    """
    known, target = PUBLISHED[name], cache_folder() / PUBLISHED[name].file
    if target.is_file():
        found = storage.sha256(str(target))
        if found == known.sha256:
            return target
        _LOGGER.warning("%s has SHA-256 %s, not %s; deleting it and downloading it again", target, found, known.sha256)
        target.unlink(missing_ok=True)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        part = _claim(target)
        part.open("ab").close()
    except OSError as error:
        raise _cannot_be_kept(name, target, error) from error
    try:
        _download(known, part)
    except OSError as error:
        _remove_empty(target)
        if storage.is_of_the_machine(error):
            raise _cannot_be_kept(name, target, error) from error
        raise CheckpointError(
            f"--model {name} cannot be downloaded from {known.url} ({_reason(error)}); get that file by other means "
            f"and save it as {target}, or set CLIP_CACHE to a folder that has it"
        ) from None
    found = storage.sha256(str(part))
    if found != known.sha256:
        part.unlink()
        raise CheckpointError(
            f"--model {name}: the file from {known.url} has SHA-256 {found}, not {known.sha256}, and was deleted; try "
            f"again, or get the file by other means and save it as {target}"
        )
    os.replace(part, target)
    return target


def _cannot_be_kept(name: str, target: Path, error: OSError) -> CheckpointError:
    known = PUBLISHED[name]
    return CheckpointError(
        f"--model {name} cannot be saved in {target.parent} ({_reason(error)}); set CLIP_CACHE to a writable folder, "
        f"or to a folder that has {known.file}, from {known.url}"
    )


def _reason(error: OSError) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return str(error)
    reason = getattr(error, "reason", None) or error
    return getattr(reason, "strerror", None) or str(reason) or type(error).__name__


def _claim(target: Path) -> Path:
    """Return a file name that only this process writes to.

    If a dead download left a part, take that part over, by a rename that only one process can win.
    """
    own = target.with_name(f"{target.name}.{secrets.token_hex(4)}.part")
    for left in target.parent.glob(f"{target.name}.*.part"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - left.stat().st_mtime > _ABANDONED_SECONDS:
                os.rename(left, own)
                break
    return own


def _remove_empty(target: Path) -> None:
    for left in target.parent.glob(f"{target.name}.*.part"):
        with contextlib.suppress(OSError):
            if not left.stat().st_size:
                left.unlink()


def _download(known: Published, part: Path) -> None:
    """Append to `part` until it is whole; after a broken connection, resume at the same byte.

    Raises:
        OSError: if several attempts in a row bring no byte, or another attempt cannot help.
    """
    barren = 0
    with part.open("ab") as file, tqdm(unit="B", unit_scale=True, desc=known.file, disable=None) as bar:
        while True:
            before = file.tell()
            try:
                for block, total in _blocks(known.url, file):
                    bar.total = total
                    file.write(block)
                    bar.update(file.tell() - bar.n)
                return
            except urllib.error.HTTPError as error:
                if error.code < 500 and error.code not in (408, 429):
                    raise  # the server would give the same answer again
                failure: Exception = error
            except urllib.error.URLError as error:
                if not file.tell() or storage.is_of_the_machine(error):
                    raise  # no network, or no such host: waiting does not help
                failure = error
            except (OSError, http.client.HTTPException) as error:
                if storage.is_of_the_machine(error):
                    raise  # another try does not make room on the disk
                failure = error
            barren = 0 if file.tell() > before else barren + 1
            if barren == _ATTEMPTS:
                raise failure if isinstance(failure, OSError) else OSError(str(failure))
            time.sleep(_WAIT_SECONDS * 2**barren)


def _blocks(url: str, file) -> Iterator[tuple[bytes, int | None]]:
    """Yield the rest of a file, block by block, each with the size of the whole file if the server states it."""
    start = file.tell()
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not start:
            raise
        if error.headers.get("Content-Range") == f"bytes */{start}":
            return  # the file was whole already
        _empty(file)  # longer than the whole file, so it is not a part of it
        raise ConnectionError("the existing part is not a part of this file") from error
    with response:
        length = response.headers.get("Content-Length")
        if start and not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            _empty(file)  # this server does not support ranges and starts over
            start = 0
        total = start + int(length) if length else None
        while block := response.read(_BLOCK):
            yield block, total
            if file.tell() > _MAX_BYTES:
                _empty(file)
                raise CheckpointError(f"{url} sends more than {_MAX_BYTES:,} bytes, more than any checkpoint has")
        if total is not None and file.tell() < total:
            raise ConnectionError(f"the connection broke at byte {file.tell():,} of {total:,}")


def _empty(file) -> None:
    file.seek(0)
    file.truncate()
