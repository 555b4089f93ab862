"""The cache of OpenAI's published checkpoints: downloaded once, resumed where it broke off, verified."""

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
from clip_transforms.clip.model_spec import CheckpointError

_TIMEOUT_SECONDS = 30.0  # without a byte
_ATTEMPTS = 6  # in a row without a byte of progress
_WAIT_SECONDS = 0.5  # before the second attempt; doubled after each further one
_ABANDONED_SECONDS = 600.0  # a part that nobody wrote to for so long may be taken over; all attempts take 243 s
_BLOCK = 1 << 20
_MAX_BYTES = 8 << 30  # a server that never ends; the largest checkpoint has 1.3 GB
_LOGGER = logging.getLogger(__name__)


def cache_folder() -> Path:
    """`$CLIP_CACHE`, else `clip` in the user's cache folder, where OpenAI's own code keeps them too.

    Raises:
        CheckpointError: if there is no such folder to be had.
    """
    try:
        if folder := os.environ.get("CLIP_CACHE"):
            return Path(folder).expanduser()
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "clip"
    except RuntimeError:
        raise CheckpointError("there is no home folder to keep checkpoints in; set CLIP_CACHE to a folder") from None


def cached(name: str) -> Path | None:
    """The file of a published model in the cache, or None; it is not verified here."""
    path = cache_folder() / PUBLISHED[name].file
    return path if path.is_file() else None


def fetch(name: str) -> Path:
    """The file of a published model, from the cache or downloaded into it, verified.

    Several processes may do this at once: each writes a file of its own name, and the last rename wins.

    Args:
        name: a key of PUBLISHED.
    Raises:
        CheckpointError: if it can be had neither there nor there; the sentence says what to do by hand.
    """
    known, target = PUBLISHED[name], cache_folder() / PUBLISHED[name].file
    if target.is_file():
        found = storage.sha256(str(target))
        if found == known.sha256:
            return target
        _LOGGER.warning("%s has SHA-256 %s, not %s; it is deleted and downloaded again", target, found, known.sha256)
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
            f"and put it to {target}, or set CLIP_CACHE to a folder that has it"
        ) from None
    found = storage.sha256(str(part))
    if found != known.sha256:
        part.unlink()
        raise CheckpointError(
            f"--model {name}: what {known.url} sent has SHA-256 {found}, not {known.sha256}, and was deleted; try "
            f"again, or get the file by other means and put it to {target}"
        )
    os.replace(part, target)
    return target


def _cannot_be_kept(name: str, target: Path, error: OSError) -> CheckpointError:
    known = PUBLISHED[name]
    return CheckpointError(
        f"--model {name} cannot be kept in {target.parent} ({_reason(error)}); set CLIP_CACHE to a folder that can "
        f"be written to, or to one that has {known.file}, from {known.url}"
    )


def _reason(error: OSError) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return str(error)
    reason = getattr(error, "reason", None) or error
    return getattr(reason, "strerror", None) or str(reason) or type(error).__name__


def _claim(target: Path) -> Path:
    """A name of our own to write to; what a dead download left is taken over, by a rename that only one can win."""
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
    """Append to `part` until it is whole; a broken connection goes on at the byte where it broke.

    Raises:
        OSError: if several attempts in a row brought nothing.
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
                    raise  # asked again, it would say the same
                failure: Exception = error
            except urllib.error.URLError as error:
                if not file.tell() or storage.is_of_the_machine(error):
                    raise  # no network, or no such host: waiting does not bring it
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
    """What is still missing of a file, block by block, and the size of the whole where the server says it."""
    start = file.tell()
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not start:
            raise
        if error.headers.get("Content-Range") == f"bytes */{start}":
            return  # it was whole already
        _empty(file)  # longer than the whole: not a part of it
        raise ConnectionError("the part that was there is no part of the file") from error
    with response:
        length = response.headers.get("Content-Length")
        if start and not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            _empty(file)  # a server that knows no ranges begins anew
            start = 0
        total = start + int(length) if length else None
        while block := response.read(_BLOCK):
            yield block, total
            if file.tell() > _MAX_BYTES:
                _empty(file)
                raise CheckpointError(f"{url} sends more than {_MAX_BYTES:,} bytes, which no checkpoint has")
        if total is not None and file.tell() < total:
            raise ConnectionError(f"the connection broke at byte {file.tell():,} of {total:,}")


def _empty(file) -> None:
    file.seek(0)
    file.truncate()
