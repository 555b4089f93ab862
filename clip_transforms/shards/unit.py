"""Define the unit, which is the piece of a shard that becomes one part, and the settings of the readers."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import posixpath
import re

from clip_transforms import storage
from clip_transforms.clip.decoders import FORMATS, HEIC_EXTRA
from clip_transforms.clip.picture_formats import HEIF_EXTENSIONS
from schemas.embeddings import reserved_names
from schemas.samples import CAPTIONS, Column

IMAGE_EXTENSIONS = (
    *("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif"),
    *("jfif", "jpe", "pjpeg", "pjp"),  # browsers and Windows give these to JPEGs
    *(HEIF_EXTENSIONS if "HEIF" in FORMATS else ()),
)
# Kind of a file that is not read → what would make it readable.
CURES = {f".{extension}": HEIC_EXTRA for extension in HEIF_EXTENSIONS if extension not in IMAGE_EXTENSIONS}
CAPTION_EXTENSIONS = ("txt", "caption", "text")
LISTING_EXTENSIONS = ("csv", "tsv", "jsonl", "ndjson")
CAPTIONS_PER_FILE = 64  # times --max_caption_bytes; the largest text file that `--captions all` reads
_COLUMN = "a text such as 'width_px=width:int32'"
INPUT_FORMATS = ("auto", "folder", "webdataset", "tfrecord", "parquet", "listing")
_EXTENSION = re.compile(
    r"\.(tar(\.(gz|bz2|xz|zst))?|tgz|tbz2|txz|tzst|tfrecords?(\.gz)?|parquet|parq|pq|csv|tsv|jsonl|ndjson)$"
)
_OTHER_CHARACTERS = re.compile(r"[^A-Za-z0-9.-]+")
UNLISTED = "unlisted"  # the format and the stamp of a folder that cannot be listed
COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst")  # of listings


def with_cure(kind: str) -> str:
    """Return the kind of a file that is not read, with what would make it readable, if anything does."""
    return f"{kind} ({CURES[kind]})" if kind in CURES else kind


class PlanError(ValueError):
    """An input cannot be used; the message is one sentence."""


class ShardError(Exception):
    """A shard cannot be read, or not to its end.

    Attributes:
        reason: `vanished` or `unreadable`.
    """

    def __init__(self, reason: str, message: str):
        """Keep the reason beside the message."""
        super().__init__(message)
        self.reason = reason


def shard_error(uri: str, error: Exception) -> ShardError:
    """Turn an error that reading a shard raised into a ShardError.

    Args:
        uri: URI of the shard.
        error: the error.
    Raises:
        Exception: `error` itself if this machine ran out of something, since that is not about the shard.
    """
    if storage.is_of_the_machine(error):
        raise error
    if isinstance(error, FileNotFoundError) and os.path.islink(uri):
        return ShardError("vanished", f"{uri} is a link to a file that does not exist")
    if isinstance(error, FileNotFoundError):
        return ShardError("vanished", f"{uri} is gone since the run was planned")
    return ShardError("unreadable", f"{type(error).__name__}: {error}")


@dataclasses.dataclass(frozen=True)
class ReaderOptions:
    """Settings of planning and of the readers.

    All but `input_format`, `exclude` and `allow_uri` are part of the fingerprint. What `exclude` leaves out changes the
    stamps of the sources.

    Attributes:
        input_format: one of INPUT_FORMATS; `auto` takes whatever is found.
        image_extension: extension of the member that is the image, for tars with several images per key.
        image_column, key_column: names of columns in Parquet and listings, if not the usual ones.
        caption_column: name of the column of captions, if not a usual one; in tars and folders a field of the JSON, as
            `a.b` or `a[0]` too, or the extension of a member or file.
        captions: `first` or `all`: which of a sample's captions to take where the source lists several.
        columns: the user's own columns; a text, `name[=field][:type]`, becomes a Column.
        limit: number of samples to read from the start of each unit; 0 for all.
        max_image_bytes, max_caption_bytes: maximum size of one encoded image, and of one caption in UTF-8.
        allow_uri: places besides its own folder that the URIs of a listing may point to: folders, hosts, or `https://`
            for every public host.
        exclude: globs of files and folders inside the inputs that are left out. One without a slash names files and
            folders at any depth, one with a slash the path below the input.
    """

    input_format: str = "auto"
    image_extension: str | None = None
    image_column: str | None = None
    caption_column: str | None = None
    key_column: str | None = None
    captions: str = "first"
    columns: tuple[Column, ...] = ()
    limit: int = 0
    max_image_bytes: int = 64 << 20
    max_caption_bytes: int = 16_384
    allow_uri: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def __post_init__(self):
        """Refuse settings that no reader could follow."""
        storage.check_types(self)
        object.__setattr__(self, "columns", _as_columns(self.columns))
        object.__setattr__(self, "allow_uri", storage.as_names(self.allow_uri, "allow_uri"))
        object.__setattr__(self, "exclude", storage.as_names(self.exclude, "exclude"))
        if self.input_format not in INPUT_FORMATS:
            raise ValueError(
                f"--input_format is {self.input_format!r}, but it must be one of {', '.join(INPUT_FORMATS)}"
            )
        if self.captions not in CAPTIONS:
            raise ValueError(f"--captions is {self.captions!r}, but it must be {' or '.join(CAPTIONS)}")
        if not 0 <= self.limit < 1 << 31:
            raise ValueError(
                f"--limit is {self.limit}, but it must be 0, for all samples of a unit, or up to 2,147,483,647"
            )
        for pattern in self.exclude:
            try:
                usable = bool(pattern.strip("/")) and bool(storage.glob_regex(pattern))
            except (ValueError, re.error):
                usable = False
            if not usable:
                raise ValueError(
                    f"--exclude is {pattern!r}, but it must be a glob such as '*.bak', thumbnails or 'old/**/*.jpg'"
                )
        for uri in self.allow_uri:
            storage.refuse_secrets(uri)
            if "://" not in uri and not uri.startswith("/"):
                raise ValueError(
                    f"--allow_uri is {uri!r}, but it must be an absolute path, or begin with a scheme such as https://"
                )
        for name in ("max_image_bytes", "max_caption_bytes"):
            if not 1 <= getattr(self, name) < 1 << 31:  # a larger value would not fit into an Arrow array
                raise ValueError(f"--{name} is {getattr(self, name)}, but it must be 1 to 2,147,483,647")

    @property
    def max_caption_file_bytes(self) -> int:
        """Maximum size of a text file with captions."""
        return self.max_caption_bytes if self.captions == "first" else CAPTIONS_PER_FILE * self.max_caption_bytes


def _as_columns(columns: object) -> tuple[Column, ...]:
    """Return one or several columns; a text is `name[=field][:type]`."""
    found: list[Column] = []
    for argument, column in storage.several(columns, "columns", f"{_COLUMN}, or several", one=(Column,)):
        if not isinstance(column, (str, Column)):
            storage.refuse_type(argument, column, _COLUMN)
        found.append(Column.parse(column, reserved_names()) if isinstance(column, str) else column)
    names = [column.name.lower() for column in found]
    if len(set(names)) < len(names):
        raise ValueError("--columns names one column twice; give each its own name")
    return tuple(found)


@dataclasses.dataclass(frozen=True)
class Unit:
    """A piece of a shard.

    Attributes:
        shard: URI of the shard; for a folder `<folder>#<the path it starts after>`.
        uri: URI of the file to read; for a folder or a listing, the name of its side file.
        format: `webdataset`, `tfrecord`, `parquet`, `folder` or `listing`; UNLISTED for a folder that cannot be listed.
        start, stop: row groups of a Parquet file or of a listing's side file, or rows of a folder's side file; 0, 0 for
            a whole tar, and for a Parquet file that could not be planned.
        first_row: `row` of its first sample.
        stamp: the source stamp, see DATASET.md section 4.
        num_bytes: approximate size of the source, for the progress bar.
        part: name of the part that it becomes, without extension.
        image_column: the place of a Parquet file's pictures, if planning found it by their bytes; otherwise empty.
        base: the folder where the paths of a Parquet file's pictures begin, if that is not the file's own.
    """

    shard: str
    uri: str
    format: str
    start: int
    stop: int
    first_row: int
    stamp: str
    num_bytes: int
    part: str
    image_column: str = ""
    base: str = ""


def part_name(shard: str, cut: str = "") -> str:
    """Return the name of the part that is made from a shard, or from the piece of it that `cut` identifies.

    The name depends on nothing else in the run. It never starts with `_` or `.`: pandas and Spark skip such files.
    """
    stem = posixpath.basename(shard.split("#")[0].rstrip("/"))
    stem = _EXTENSION.sub("", stem)
    stem = _OTHER_CHARACTERS.sub("-", stem).lstrip(".-")[:80] or "part"
    return f"{stem}-{hashlib.sha256(f'{shard}|{cut}'.encode()).hexdigest()[:12]}"
