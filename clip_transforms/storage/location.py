"""URIs: what they name, which file system reaches it, and what must not stand in them."""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import fsspec
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from clip_transforms.storage.errors import is_of_the_machine

# What object stores call the thing that changes whenever the bytes do, in the order in which it is trusted.
_ETAG_KEYS = ("ETag", "etag", "md5Hash", "crc32c", "content_md5", "version_id", "generation")
_TIME_KEYS = ("LastModified", "Last-Modified", "last_modified", "updated", "mtime", "created")

# user:password@host, and an authority with a colon that is no port, since a secret key may hold slashes; neither an ARN
# nor an IPv6 address.
_SECRET = re.compile(r"^[^/]*://(?!arn:|\[)(?:[^/@]*:[^/@]*@|[^/]*:(?!\d*(?:/|$)))")
# A signed URL lets whoever reads it read the file, as a password would.
_SIGNED = re.compile(
    r"[?&](?:sig|signature|x-(?:amz|goog)-[^=]*|awsaccesskeyid|googleaccessid|(?:[a-z]+[-_])?(?:token|key|secret|password)"
    r"|apikey)=",
    re.IGNORECASE,
)

_LOCAL = LocalFileSystem()


class StorageError(ValueError):
    """A URI that cannot be used, in one sentence for the person who wrote it."""


def filesystem(uri: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of a URI, and the path in it.

    Raises:
        StorageError: if its protocol is unknown, its package is not installed, or a password stands in it.
    """
    if "://" not in uri:  # fsspec would take :: in a name for a chain of file systems
        return _LOCAL, os.path.abspath(uri)
    refuse_secrets(uri)
    try:
        fs, path = url_to_fs(uri)
        return fs, os.path.abspath(path) if isinstance(fs, LocalFileSystem) else path
    except ImportError as error:
        protocol = uri.split("://")[0]
        package = {"gs": "gcsfs", "gcs": "gcsfs", "s3": "s3fs", "s3a": "s3fs", "hf": "huggingface_hub"}.get(protocol)
        cure = f"pip install {package}" if package else str(error)
        raise StorageError(f"{uri} needs a package that is not installed: {cure}") from error
    except Exception as error:  # each file system has its own way to say that a URI is not for it
        if is_of_the_machine(error):
            raise
        raise StorageError(f"{uri} cannot be opened: {error or type(error).__name__}") from error


def is_local(uri: str) -> bool:
    """Whether a URI is a path of this machine."""
    return isinstance(filesystem(uri)[0], LocalFileSystem)


def normalise(uri: str) -> str:
    """Absolute, without `file://`, without a trailing slash: the name under which a shard is known."""
    fs, path = filesystem(uri)
    if isinstance(fs, LocalFileSystem):
        return path
    return fs.unstrip_protocol(path).rstrip("/")


def join(base: str, *names: str) -> str:
    """A path below a URI."""
    return posixpath.join(base, *names)


def check_writable(uri: str) -> None:
    """Refuse a local folder that cannot be written to, or not be made, without writing anything.

    Raises:
        StorageError: naming it.
    """
    if not is_local(uri):
        return  # an object store says so at the first upload
    place = Path(normalise(uri))
    while not place.exists():
        place = place.parent
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        raise StorageError(
            f"--output {uri} cannot be written to: {place} is read-only or no folder; choose another place"
        )


def refuse_secrets(uri: str) -> None:
    """Refuse what would be found again in run.json, in messages and in every part.

    Raises:
        StorageError: which does not repeat it.
    """
    if _SECRET.match(uri):
        scheme, _, rest = uri.partition("://")
        host = rest.rpartition("@")[2] if "@" in rest else "…"
        raise StorageError(
            f"{scheme}://…@{host} has a password or key in it, which would be found again in the dataset; give "
            "credentials where its package looks for them (the environment, a file in the home folder)"
        )
    if _SIGNED.search(uri):
        raise StorageError(
            f"{uri.partition('?')[0]}?… is a signed URL, and the signature would be found again in the dataset; give "
            "the URI without it, and credentials where its package looks for them"
        )


def token_of(info: Mapping[str, Any]) -> str:
    """What changes whenever the bytes of a remote file do: its etag, or else its time; empty if there is neither."""
    token = next((str(info[key]) for key in (*_ETAG_KEYS, *_TIME_KEYS) if info.get(key)), "")
    return token.strip('"')
