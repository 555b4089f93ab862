"""Check where the URIs of a listing point: below its own folder, or below a place that --allow_uri permits."""

from __future__ import annotations

import dataclasses
import functools
import ipaddress
import os
import posixpath
import re
import socket
from collections.abc import Sequence
from urllib.parse import SplitResult, unquote, urlsplit

from clip_transforms import storage

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_PORTS = {"http": 80, "https": 443}


class FenceError(ValueError):
    """The URI is not allowed or malformed. The message leaves out its query, which may hold a secret."""


@dataclasses.dataclass(frozen=True)
class Fence:
    """The places that a listing may fetch its images from.

    Attributes:
        root: URI of the listing's folder.
        prefixes: further places: folders, hosts, or a scheme alone (`https://`) for every public host.
    """

    root: str
    prefixes: Sequence[str] = ()

    def resolve(self, text: str) -> str:
        """Return the absolute form of a URI of the listing.

        Raises:
            FenceError: if it is not allowed.
        """
        if _CONTROL.search(text):
            raise FenceError("the URI has control characters")
        match = _SCHEME.match(text)
        if match and match[1].lower() == "file":
            return self._local(text[match.end() :])
        if match:
            return self._remote(text)
        if not _SCHEME.match(self.root):
            return self._local(posixpath.join(self.root, text))
        if text.startswith("/"):
            raise FenceError(f"{text[:200]} is a path of this machine, but the listing is not")
        return self._remote(f"{self.root.rstrip('/')}/{text}")

    def follow(self, uri: str) -> str:
        """Check the absolute URI that a redirect leads to, as `resolve` does."""
        if not _SCHEME.match(uri):
            raise FenceError("the redirect is no URI")
        return self._remote(uri)

    def addresses(self, host: str, port: int) -> list[str]:
        """Return the addresses of a host. Connect to these: the name may resolve to others a moment later.

        Each address is public, or a prefix or the listing's own URI names it literally.

        Raises:
            FenceError: if an address belongs to a private network or to this machine, or is otherwise not public.
            OSError: if the name cannot be resolved.
        """
        found = list(dict.fromkeys(str(info[4][0]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)))
        places = map(urlsplit, (self.root, *self.prefixes))
        named = {place.hostname for place in places if place.scheme in _PORTS}
        for address in found:
            if address not in named and not is_public(address) and not (host == "localhost" and host in named):
                raise FenceError(
                    f"{host} is at {address}, which is no public address; --allow_uri http://{address}/ permits it"
                )
        return found

    @functools.cached_property
    def _folders(self) -> list[str]:
        """The places that are folders of this machine, with all links resolved and a slash at the end."""
        places = (place.removeprefix("file://") for place in (self.root, *self.prefixes))
        return [os.path.realpath(place).rstrip("/") + "/" for place in places if not _SCHEME.match(place)]

    @functools.cached_property
    def _real_folders(self) -> dict[str, str]:
        """The folders of the files so far, as they were named → with all links resolved, no slash at the end."""
        return {}

    def _local(self, path: str) -> str:
        """Return the path of the file with all links resolved."""
        if not path.isascii():
            path = _as_name(path)
        folder, slash, name = path.rpartition("/")
        try:
            # A path without a slash, as of `file://a.jpg`, starts at the folder that this process runs in.
            if not slash or name in ("", ".") or ".." in path or os.path.islink(path):
                real = os.path.realpath(path)
            else:
                if folder not in self._real_folders:
                    self._real_folders[folder] = os.path.realpath(f"{folder}/").rstrip("/")
                real = f"{self._real_folders[folder]}/{name}"
        except (OSError, ValueError) as error:
            if storage.is_of_the_machine(error):
                raise
            raise FenceError(f"the path cannot be resolved: {error}") from None
        if any(map(real.startswith, self._folders)):
            return real
        raise FenceError(f"{real[:200]} lies outside the listing's folder; --allow_uri permits more")

    def _remote(self, uri: str) -> str:
        try:
            split = urlsplit(uri)
            port = split.port
        except ValueError as error:
            raise FenceError(f"the URI is malformed: {error}") from None
        shown = f"{split.scheme}://{split.netloc.rpartition('@')[2]}{split.path}"[:200]
        chained = "::" in uri and split.scheme not in _PORTS  # fsspec reaches one file system through another so
        if "@" in split.netloc or "\\" in uri or chained:
            raise FenceError(f"{shown} has a user, a backslash or :: in it")
        if any(part in (".", "..") for part in unquote(split.path).split("/")):
            raise FenceError(f"{shown} climbs")
        if split.scheme in _PORTS and (not split.hostname or port == 0):
            raise FenceError(f"{shown} names no host")
        if not any(_below(split, urlsplit(place)) for place in (self.root, *self.prefixes) if _SCHEME.match(place)):
            raise FenceError(f"{shown} lies outside the listing's folder; --allow_uri permits more")
        return uri


def _as_name(path: str) -> str:
    """Return a path that a file can have: no name holds half a surrogate pair, so its bytes in UTF-8 stand for it."""
    try:
        os.fsencode(path)
    except UnicodeEncodeError:
        return os.fsdecode(path.encode("utf-8", "surrogatepass"))
    return path


def _below(uri: SplitResult, place: SplitResult) -> bool:
    if uri.scheme != place.scheme:
        return False
    if not place.netloc and not place.path.strip("/"):
        return True  # a scheme alone
    if uri.scheme in _PORTS:
        same = (uri.hostname, uri.port or _PORTS[uri.scheme]) == (place.hostname, place.port or _PORTS[place.scheme])
        return same and _starts(uri.path, place.path)
    return _starts(uri.netloc + uri.path, place.netloc + place.path)


def _starts(path: str, folder: str) -> bool:
    path, folder = path.lstrip("/"), folder.strip("/")
    return not folder or path == folder or path.startswith(f"{folder}/")


def is_public(address: str) -> bool:
    """Return whether an IP address, or the address embedded in it, belongs to the public internet."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo and ip.teredo[1])
        if inner is None and ip in ipaddress.ip_network("64:ff9b::/96"):  # an IPv4 address behind a public translator
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
        if ip.is_site_local or ip.is_reserved:  # among them IPv4 addresses behind a private translator
            return False
    return ip.is_global and not ip.is_multicast
