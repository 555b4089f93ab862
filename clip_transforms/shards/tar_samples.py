"""Which members of a tar form a sample, and which of them is its picture: for reading it, and for finding it again."""

from __future__ import annotations

import dataclasses
import posixpath
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from clip_transforms.clip.picture_formats import picture_format
from clip_transforms.shards.batches import read_reject, too_large
from clip_transforms.shards.beside import SNIFFED_BYTES
from clip_transforms.shards.tar import Member
from clip_transforms.shards.unit import IMAGE_EXTENSIONS, ReaderOptions

_NAMED = 5  # number of a key's images that a reject names


def keyed_members(
    members: Iterable[Member], notes: Counter, first_row: int = 0
) -> Iterator[tuple[int, str, str, Member]]:
    """Yield (row, key, extension in lower case, member). Consecutive members with the same key are one sample.

    Args:
        members: the members in order, from the first one of a sample on.
        notes: counter for members that are passed over.
        first_row: row of that sample.
    """
    row, last = first_row - 1, None
    for member in members:
        base = member.name.rpartition("/")[2]
        if base.startswith("."):
            if not base.startswith("._"):  # those hold what macOS knows of a file, no picture
                notes["members that are dot files, which are not read"] += 1
            continue
        stem, _, extension = base.partition(".")
        key = member.name[: len(member.name) - len(base)] + stem
        if "//" in key:  # as posixpath has it, which drops slashes at the end of a folder's name
            key = posixpath.join(posixpath.dirname(member.name), stem)
        if key != last:
            row, last = row + 1, key
        yield row, key, extension.lower(), member


@dataclasses.dataclass
class Candidates:
    """The members that may be the image of a key: the first one, and their number."""

    count: int = 0
    num_bytes: int = 0
    names: list[str] = dataclasses.field(default_factory=list)
    fields: dict[str, Any] = dataclasses.field(default_factory=dict)

    def image(self, key: str) -> dict[str, Any]:
        """Return `image`, `image_reject`, or nothing."""
        if self.count < 2:
            return self.fields
        more = f" and {self.count - _NAMED:,} more" if self.count > _NAMED else ""
        message = f"{self.count:,} images under the key {key[:200]!r} ({', '.join(self.names)}{more}): "
        choice = f"choose one with --image_extension, as {self.names[0].removeprefix('.') or 'EXT'}"
        if len(set(self.names)) < len(self.names):
            message += "two members have one name; write the tar again with a name for each"
        elif any("." in name[1:] for name in self.names):
            message += (
                f"a key ends at the first dot of a member's name; if these are pictures of one sample, {choice}; if "
                "each is a sample of its own, rename the members so that the only dot is before the extension"
            )
        else:
            message += choice
        return {"image_reject": read_reject("several images", message, self.num_bytes)}


class ImageChoice:
    """Chooses the image among the members of one key, and takes no more than one of each kind.

    Attributes:
        others: images that --image_extension passes over.
    """

    def __init__(self, options: ReaderOptions, take: Callable[[Member], Any]):
        """Take nothing yet.

        Args:
            options: `image_extension` and `max_image_bytes`.
            take: makes the value of `image` of a member within its limit; it is called before the next member comes.
        """
        self._extension, self._limit, self._take = options.image_extension, options.max_image_bytes, take
        self._whole = Candidates()  # a.jpg
        self._tails = Candidates()  # a.seg.png, which is used if there is no other image
        self._bare = Candidates()  # a, which is used if there is no image with an extension
        self.others = 0

    def add(self, extension: str, member: Member) -> bool:
        """Take a member if it may be the image; return whether it may.

        Raises:
            ShardError: if the tar is damaged inside the member, which is a reject then.
        """
        candidates = self._candidates(extension, member)
        if candidates is None:
            return False
        candidates.count += 1
        candidates.num_bytes += member.size
        if candidates.count <= _NAMED:
            candidates.names.append(f".{extension}")
        candidates.fields = {}
        if candidates.count == 1:  # of several images none is taken, so later ones are not read
            if member.problem is None and member.size > self._limit:
                candidates.fields = too_large("image", member.size, self._limit)
                return True
            try:
                candidates.fields = {"image": self._take(member)} if member.problem is None else {}
            finally:  # also where the tar is damaged inside the member
                candidates.fields = candidates.fields or {"image_reject": member.lost()}
        return True

    def _candidates(self, extension: str, member: Member) -> Candidates | None:
        if self._extension:
            if extension == self._extension.lower().removeprefix("."):
                return self._whole
            self.others += is_image(extension)
            return None
        if extension in IMAGE_EXTENSIONS:
            return self._whole
        if is_image(extension):
            return self._tails
        if extension or member.problem or picture_format(member.start(SNIFFED_BYTES)) is None:
            return None
        return self._bare

    def chosen(self) -> tuple[Candidates, list[str]]:
        """Return the candidates that count, and some names of those that do not."""
        chosen = next((found for found in (self._whole, self._tails, self._bare) if found.count), self._whole)
        passed = [found for found in (self._tails, self._bare) if found is not chosen]
        return chosen, [name for found in passed for name in found.names]


def is_image(extension: str) -> bool:
    """Return whether a member is an image by what follows the last dot of its name."""
    return extension.rpartition(".")[2] in IMAGE_EXTENSIONS
