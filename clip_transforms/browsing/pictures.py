"""Pictures of rows, read from their sources in the background and kept in a cache that is bounded in bytes.

Reading one picture of a tar may mean reading the tar, so all that is wanted of a part is read at once. The server tells
in advance which pictures a page will ask for, since a browser asks for six at a time.
"""

from __future__ import annotations

import collections
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from typing import NamedTuple

from clip_transforms.browsing.loaded import Loaded
from clip_transforms.pages.thumbnails import LARGE, thumbnail, whole_picture
from clip_transforms.shards.wanted import Picture, Wanted

NO_PICTURE = "no picture"
_MOST_BYTES = 96 << 20  # of encoded pictures: some 5,000
_MOST_WAITING = 2_000
_ENTRY = 300  # bytes that an entry takes besides its picture
_RETRY = 15.0  # seconds after which a lost picture is looked for again: a disk may have been mounted
_THREADS = 2
_LOGGER = logging.getLogger(__name__)
# (part, its shard, wanted rows sorted) → a Picture for each.
Read = Callable[[str, str, Sequence[Wanted]], Iterator[Picture]]


class Shown(NamedTuple):
    """What a page gets of a row: an encoded picture, or the reason why there is none."""

    image: bytes | None
    lost: str


class Want(NamedTuple):
    """A picture that is wanted: the row's place, and whether all of it or its central square."""

    place: int
    whole: bool


class Pictures:
    """Reads pictures in threads of its own."""

    def __init__(self, loaded: Loaded, read: Read, most_bytes: int = _MOST_BYTES):
        """Start the threads.

        Args:
            loaded: the dataset.
            read: reads pictures of a part.
            most_bytes: bytes of pictures that are kept.
        """
        self._loaded, self._read, self._most = loaded, read, most_bytes
        self._kept: collections.OrderedDict[Want, tuple[Shown, float]] = collections.OrderedDict()
        self._bytes = 0
        self._futures: dict[Want, Future[Shown]] = {}  # asked for, expected or being read
        self._asked: collections.OrderedDict[Want, None] = collections.OrderedDict()  # the last one comes first
        self._expected: collections.OrderedDict[Want, None] = collections.OrderedDict()  # the first one comes first
        self._changed = threading.Condition()
        self._open = True
        for _ in range(_THREADS):
            threading.Thread(target=self._work, name="pictures", daemon=True).start()

    def ask(self, want: Want) -> Future[Shown]:
        """Ask for a picture. What was asked for last is read first, since a person looks at it now."""
        with self._changed:
            if (shown := self._look_up(want)) is not None:
                future: Future[Shown] = Future()
                future.set_result(shown)
                return future
            future = self._futures.setdefault(want, Future())
            if not future.running():  # else it is being read
                self._expected.pop(want, None)
                self._asked[want] = None
                self._asked.move_to_end(want)
            while len(self._asked) > _MOST_WAITING:
                oldest, _ = self._asked.popitem(last=False)
                self._futures.pop(oldest).set_result(Shown(None, "too many at once"))
            self._changed.notify()
            return future

    def expect(self, places: Iterable[int]) -> None:
        """Say which pictures a page will ask for; what an earlier page did not ask for by now is dropped."""
        with self._changed:
            for want in self._expected:
                del self._futures[want]
            self._expected.clear()
            for want in (Want(place, False) for place in places):
                if want not in self._futures and self._look_up(want) is None:
                    self._futures[want] = Future()
                    self._expected[want] = None
            self._changed.notify_all()

    def close(self) -> None:
        """Let the threads end after the part that each reads."""
        with self._changed:
            self._open = False
            self._changed.notify_all()

    @property
    def size(self) -> int:
        """Bytes that are kept."""
        return self._bytes

    def _look_up(self, want: Want) -> Shown | None:
        if want not in self._kept:
            return None
        shown, until = self._kept[want]
        if until < time.monotonic():
            self._forget(want)
            return None
        self._kept.move_to_end(want)
        return shown

    def _forget(self, want: Want) -> None:
        shown, _ = self._kept.pop(want)
        self._bytes -= len(shown.image or b"") + _ENTRY

    def _keep(self, want: Want, shown: Shown) -> None:
        if want in self._kept:
            self._forget(want)
        lasting = shown.image is not None or shown.lost == NO_PICTURE
        self._kept[want] = (shown, float("inf") if lasting else time.monotonic() + _RETRY)
        self._bytes += len(shown.image or b"") + _ENTRY
        while self._bytes > self._most:
            self._forget(next(iter(self._kept)))

    def _work(self) -> None:
        while True:
            with self._changed:
                while self._open and not (self._asked or self._expected):
                    self._changed.wait()
                if not self._open:
                    return
                part, wants = self._next()
            try:
                self._show(part, wants)
            except Exception as error:  # one part's damage must not end the thread, and its reason is shown and logged
                if self._open:
                    _LOGGER.warning("pictures of %s cannot be read: %s", self._loaded.parts[part], error)
                self._settle({want: Shown(None, "unreadable") for want in wants})

    def _next(self) -> tuple[int, list[Want]]:
        """Take all that is wanted of one part."""
        first = next(reversed(self._asked)) if self._asked else next(iter(self._expected))
        part, _ = self._loaded.part_of(first.place)
        low, high = self._loaded.firsts[part], self._loaded.firsts[part + 1]
        wants = [want for want in (*self._asked, *self._expected) if low <= want.place < high]
        for want in wants:
            self._asked.pop(want, None)
            self._expected.pop(want, None)
            self._futures[want].set_running_or_notify_cancel()
        return part, wants

    def _show(self, part: int, wants: Sequence[Want]) -> None:
        loaded, wanted = self._loaded, []
        by_row: dict[int, list[Want]] = {}
        places = sorted({want.place for want in wants})
        for place, row in zip(places, loaded.rows(places), strict=True):
            mine = [want for want in wants if want.place == place]
            if row["width"] is None or row["image_sha256"] is None:  # a picture that could be decoded has a width
                self._settle({want: Shown(None, NO_PICTURE) for want in mine})
            else:
                by_row[row["row"]] = mine
                wanted.append(Wanted(row["row"], row["key"], row["image_sha256"]))
        name = loaded.parts[part]
        for picture in self._read(name, loaded.plan.dataset.shards[name], sorted(wanted)):
            self._settle({want: self._encoded(picture, want) for want in by_row.pop(picture.row)})
        self._settle({want: Shown(None, "unreadable") for mine in by_row.values() for want in mine})

    def _encoded(self, picture: Picture, want: Want) -> Shown:
        if picture.image is None:
            return Shown(None, picture.lost)
        plan = self._loaded.plan
        if want.whole:
            return Shown(*whole_picture(picture.image, plan.max_pixels, plan.exif_orientation))
        return Shown(*thumbnail(picture.image, LARGE, plan.max_pixels, plan.exif_orientation, fast_decode=True))

    def _settle(self, found: dict[Want, Shown]) -> None:
        with self._changed:
            for want, shown in found.items():
                future = self._futures.pop(want, None)
                if future is not None:
                    self._keep(want, shown)
                    future.set_result(shown)
