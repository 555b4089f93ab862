"""Parse URIs: which file system reaches them, what they name, and whether they contain secrets."""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import fsspec
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from clip_transforms.storage.errors import is_of_the_machine
from clip_transforms.storage.s3_times import read_times_quickly

# Names that file systems give to the value that changes whenever the bytes do; the most trusted ones first.
_ETAG_KEYS = ("ETag", "etag", "md5Hash", "crc32c", "content_md5", "version_id", "generation")
_TIME_KEYS = ("LastModified", "Last-Modified", "last_modified", "updated", "mtime", "created")

# Matches user:password@host, and an authority with a colon that no port follows, since a secret key may have slashes.
# ARNs and IPv6 addresses do not match.
_SECRET = re.compile(r"^[^/]*://(?!arn:|\[)(?:[^/@]*:[^/@]*@|[^/]*:(?!\d*(?:/|$)))")
# Anybody who reads a signed URL can read the file, as with a password.
_SIGNED = re.compile(
    r"[?&](?:sig|signature|x-(?:amz|goog)-[^=]*|awsaccesskeyid|googleaccessid|(?:[a-z]+[-_])?(?:token|key|secret|password)"
    r"|apikey)=",
    re.IGNORECASE,
)

_LOCAL = LocalFileSystem()
# Protocol → the command that installs its package: an extra of ours, as the documents name it, or the package itself.
_CURES = {
    **dict.fromkeys(("gs", "gcs"), "pip install -e '.[gcp]', or only gcsfs"),
    **dict.fromkeys(("s3", "s3a"), "pip install -e '.[aws]', or only s3fs"),
    "hf": "pip install huggingface_hub",
}


class StorageError(ValueError):
    """A URI cannot be used; the message is one sentence for the person who wrote it."""


def filesystem(uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """Return the file system of a URI, and the path in it.

    Raises:
        StorageError: if its protocol is unknown, its package is not installed, or it contains a password.
    """
    if "://" not in uri:  # fsspec would read :: in a name as a chain of file systems
        return _LOCAL, os.path.abspath(uri)
    refuse_secrets(uri)
    try:
        fs, path = url_to_fs(uri)
        read_times_quickly(fs)
        return fs, os.path.abspath(path) if isinstance(fs, LocalFileSystem) else path
    except ImportError as error:
        protocol = uri.split("://")[0]
        cure = _CURES.get(protocol, str(error))
        raise StorageError(f"{uri} needs a package that is not installed: {cure}") from error
    except Exception as error:  # each file system raises its own errors for a URI that it cannot use
        if is_of_the_machine(error):
            raise
        raise StorageError(f"{uri} cannot be opened: {error or type(error).__name__}") from error


def local_path(uri: str) -> str | None:
    """Return the path of a URI on this machine; None if it is elsewhere."""
    fs, path = filesystem(uri)
    return path if isinstance(fs, LocalFileSystem) else None


def is_local(uri: str) -> bool:
    """Return whether a URI is a path on this machine."""
    return local_path(uri) is not None


def normalise(uri: str) -> str:
    """Return the name that a shard is known by: absolute, without `file://` and without a trailing slash."""
    fs, path = filesystem(uri)
    if isinstance(fs, LocalFileSystem):
        return path
    return fs.unstrip_protocol(path).rstrip("/")


def join(base: str, *names: str) -> str:
    """Return a path below a URI."""
    return posixpath.join(base, *names)


def check_writable(uri: str, given: str = "") -> None:
    """Refuse a folder on this machine that cannot be written to or made; write nothing.

    Args:
        uri: URI of the folder.
        given: the flag that named it or a file in it, with its value; by default --output and the folder.
    Raises:
        StorageError: naming the flag, its value, and the folder.
    """
    if not is_local(uri):
        return  # an object store refuses the first upload
    place = Path(normalise(uri))
    while not place.exists():
        place = place.parent
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        raise StorageError(
            f"{given or f'--output {uri}'} cannot be written to: {place} is read-only or not a folder; choose another "
            "place"
        )


def refuse_secrets(uri: str) -> None:
    """Refuse a URI with a secret, which would appear in run.json, in messages and in every part.

    Raises:
        StorageError: without repeating the secret.
    """
    if _SECRET.match(uri):
        scheme, _, rest = uri.partition("://")
        host = rest.rpartition("@")[2] if "@" in rest else "…"
        raise StorageError(
            f"{scheme}://…@{host} contains a password or key, which would appear in the dataset; give "
            "credentials where its package looks for them (the environment, a file in the home folder)"
        )
    if _SIGNED.search(uri):
        raise StorageError(
            f"{uri.partition('?')[0]}?… is a signed URL, and its signature would appear in the dataset; give "
            "the URI without it, and credentials where its package looks for them"
        )


def token_of(info: Mapping[str, Any]) -> str:
    """Return a value that changes whenever a remote file does: its etag, else its time; empty if it has neither."""
    return _first_of(info, (*_ETAG_KEYS, *_TIME_KEYS))


def stamp_of(info: Mapping[str, Any]) -> str:
    """Return the size and etag of a remote file; empty if it has no etag. Two files of one stamp are the same."""
    etag = _first_of(info, _ETAG_KEYS)
    return f"{info['size']}-{etag}" if etag else ""


def _first_of(info: Mapping[str, Any], keys: Sequence[str]) -> str:
    return next((str(info[key]) for key in keys if info.get(key)), "").strip('"')
