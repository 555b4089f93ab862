"""--input → what was found and what was not taken. Planning reads no image, and of Parquet files only footers."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import hashlib
import posixpath
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

import braceexpand
import pyarrow as pa
import pyarrow.parquet as pq

from clip_transforms import storage
from clip_transforms.shards.cut import cut_folder, cut_parquet, text_of
from clip_transforms.shards.parquet import ColumnError, check_columns, image_column
from clip_transforms.shards.unit import CAPTION_EXTENSIONS, IMAGE_EXTENSIONS, ReaderOptions, Unit, part_name
from clip_transforms.storage import FileInfo

_TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")
_FOOTER_THREADS = 16


class PlanError(ValueError):
    """An input that cannot be used, in one sentence."""


@dataclasses.dataclass
class Plan:
    """What was found.

    Attributes:
        units: sorted by shard and cut.
        lists: name → list of files (`folder.FILES`), for the folder units.
        detection: lines that say what was taken and what was not.
    """

    units: list[Unit] = dataclasses.field(default_factory=list)
    lists: dict[str, pa.Table] = dataclasses.field(default_factory=dict)
    detection: list[str] = dataclasses.field(default_factory=list)

    @property
    def formats(self) -> set[str]:
        """The formats of the units."""
        return {unit.format for unit in self.units}


def plan_units(inputs: Sequence[str], options: ReaderOptions) -> Plan:
    """Find the shards that the inputs name and cut them into units.

    Args:
        inputs: folders, files, globs, brace patterns, `@file` with one of these a line, on any fsspec file system.
        options: the format to take, and what the readers are told; checked against what was found.
    Raises:
        PlanError: if an input matches nothing, holds nothing to read, or an option does not fit it.
    """
    plan = Plan()
    taken: set[str] = set()  # one shard named twice is read once
    named: dict[str, list[FileInfo]] = defaultdict(list)  # folder → pictures that inputs name one by one
    for pattern in _expand(inputs):
        files, folders = storage.list_matching(pattern)
        if not files and not folders:
            raise PlanError(f"--input {pattern} matches nothing; check the path, and quote a glob against the shell")
        if not storage.is_glob(pattern) and files and _kind(files[0].uri) == "image":
            named[posixpath.dirname(files[0].uri)].extend(files)
            continue
        found = 0
        if files:
            found += _take(plan, pattern, files, _root_of(pattern, files), options, taken)
        for folder in folders:
            found += _take(plan, folder, storage.list_below(folder), storage.normalise(folder), options, taken)
        if not found:
            raise _nothing_to_read(pattern, files, folders, options.input_format)
    for folder, files in named.items():
        # As when a shell expanded a glob: one source, not a unit for every picture.
        name = hashlib.sha256(
            "\n".join(sorted(file.uri for file in files)).encode(errors="surrogateescape")
        ).hexdigest()
        if not _take(plan, f"{folder}/({len(files)} named pictures, {name[:8]})", files, folder, options, taken):
            raise _nothing_to_read(files[0].uri, files, [], options.input_format)
    if len({unit.part for unit in plan.units}) < len(plan.units):
        raise RuntimeError("two units of the input would have the same part; please report this with the command")
    _check_flags(plan, options)
    return plan


def _expand(inputs: Iterable[str]) -> list[str]:
    patterns = []
    for text in inputs:
        if text.startswith("@"):
            try:
                lines = [line.strip() for line in storage.read_bytes(text[1:]).decode().splitlines() if line.strip()]
            except (OSError, UnicodeDecodeError) as error:
                raise PlanError(
                    f"--input {text} cannot be read: {error}; it must be a text file, an input a line"
                ) from None
            if not lines or any(line.startswith("@") for line in lines):
                raise PlanError(
                    f"--input {text} must hold inputs, one a line, and no further @file; write at least one"
                )
            patterns.extend(_expand(lines))
        else:
            patterns.extend([text] if "{" not in text or storage.exists(text) else _braces(text))
    return list(dict.fromkeys(patterns))


def _braces(text: str) -> list[str]:
    try:
        return list(braceexpand.braceexpand(text, escape=False))
    except ValueError as error:
        raise PlanError(f"--input {text} is no brace pattern: {error}; write {{00000..00999}} or {{a,b}}") from None


def _root_of(pattern: str, files: list[FileInfo]) -> str:
    """The folder that a pattern's pictures are keyed from: the last one before its first glob character."""
    fixed = storage.normalise(
        pattern[: min((pattern.find(c) for c in "*?[" if c in pattern), default=len(pattern))] + "x"
    )
    return posixpath.dirname(fixed) if storage.is_glob(pattern) else posixpath.dirname(files[0].uri)


def _take(plan: Plan, name: str, files: list[FileInfo], root: str, options: ReaderOptions, taken: set[str]) -> int:
    """Add what one input holds to the plan; the count of shards and pictures found."""
    wanted = options.input_format
    files, outputs = _without_datasets(files)
    visible = [file for file in files if not _hidden(file.uri, root)]
    kinds: dict[str, list[FileInfo]] = defaultdict(list)
    for file in visible:
        kinds[_kind(file.uri)].append(file)
    tars = kinds["tar"] if wanted in ("auto", "webdataset") else []
    parquets, sidecars = ([], [])
    if wanted in ("auto", "parquet"):
        parquets, sidecars = _split_parquet(kinds["parquet"], visible, options)
    images = kinds["image"] if wanted == "folder" or (wanted == "auto" and not tars and not parquets) else []
    fresh = [file for file in tars if file.uri not in taken]
    for file in fresh:
        plan.units.append(Unit(file.uri, file.uri, "webdataset", 0, 0, 0, file.stamp, file.size, part_name(file.uri)))
    for file, metadata in parquets:
        if file.uri not in taken:
            plan.units.extend(cut_parquet(file, metadata))
    if images:
        whole = storage.normalise(name) == root
        # A glob such as *.jpg names the pictures alone; their captions lie beside them.
        beside = visible if whole else storage.list_below(root)
        list_name = f"files-{len(plan.lists)}.parquet"
        source, fresh = root if whole else storage.normalise(name), [i for i in images if i.uri not in taken]
        units, plan.lists[list_name] = cut_folder(root, source, list_name, fresh, beside)
        plan.units.extend(units)
    for file in (*tars, *(file for file, _ in parquets)):
        if text_of(file.uri) != file.uri:
            raise PlanError(f"{text_of(file.uri)}: the name of this shard is not UTF-8; rename it")
    taken.update(file.uri for file in (*tars, *(file for file, _ in parquets), *images))
    line = _detection(name, kinds, len(tars), len(parquets), images, len(sidecars))
    plan.detection.append(line + (f"; left out: {outputs} datasets of this program" if outputs else ""))
    return len(tars) + len(parquets) + len(images)


def _without_datasets(files: list[FileInfo]) -> tuple[list[FileInfo], int]:
    """The files that lie in no output of this program, and how many such outputs there are: an output may lie below
    its own input.
    """
    outputs = tuple(f"{posixpath.dirname(f.uri)}/" for f in files if posixpath.basename(f.uri) == "_dataset.json")
    return [file for file in files if not file.uri.startswith(outputs)] if outputs else files, len(outputs)


def _hidden(uri: str, root: str) -> bool:
    relative = uri.removeprefix(root).lstrip("/")
    return any(part.startswith(".") or part == "__MACOSX" for part in relative.split("/"))


def _kind(uri: str) -> str:
    lower = posixpath.basename(uri).lower()
    extension = lower.rpartition(".")[2] if "." in lower else ""
    if lower.endswith(_TAR_SUFFIXES):
        return "tar"
    if extension in IMAGE_EXTENSIONS:
        return "image"
    if lower.endswith("_stats.json"):
        return "statistics"
    if extension in CAPTION_EXTENSIONS:
        return "caption"
    return extension if extension in ("parquet", "json") else f".{extension}" if "." in lower else "no extension"


def _split_parquet(
    files: list[FileInfo], visible: list[FileInfo], options: ReaderOptions
) -> tuple[list[tuple[FileInfo, pq.FileMetaData]], list[FileInfo]]:
    """Parquet files with image bytes, with their footers; and those that only describe what lies beside them."""
    tars = [file for file in visible if _kind(file.uri) == "tar"] if options.input_format == "auto" else []
    tar_stems = {_stem(file.uri) for file in tars}
    image_folders = {posixpath.dirname(file.uri) for file in visible if _kind(file.uri) == "image"}
    sidecars = [file for file in files if _stem(file.uri) in tar_stems]
    rest = [file for file in files if _stem(file.uri) not in tar_stems]
    shards = []
    with concurrent.futures.ThreadPoolExecutor(_FOOTER_THREADS) as pool:
        for file, metadata in zip(rest, pool.map(_footer, rest), strict=True):
            schema = metadata.schema.to_arrow_schema()
            try:
                if image_column(schema, options) is not None:
                    check_columns(schema, options)
                    shards.append((file, metadata))
                    continue
            except ColumnError as error:
                raise PlanError(f"{error} ({file.uri})") from None
            if _stem(file.uri) not in image_folders and not any(_kind(f.uri) in ("image", "tar") for f in visible):
                raise PlanError(
                    f"{file.uri} has no column of image bytes (columns: {', '.join(schema.names)}); name one with "
                    "--image_column, or give only the files that have one"
                )
            sidecars.append(file)
    return shards, sidecars


def _stem(uri: str) -> str:
    for suffix in (*_TAR_SUFFIXES, ".parquet"):
        if uri.lower().endswith(suffix):
            return uri[: -len(suffix)]
    return uri


def _footer(file: FileInfo) -> pq.FileMetaData:
    try:
        with storage.open_input(file.uri) as opened:
            return pq.read_metadata(opened)
    except (pa.ArrowException, OSError) as error:
        raise PlanError(
            f"{file.uri} is not readable as Parquet: {error}; mend it or leave it out of --input"
        ) from error


def _detection(
    name: str, kinds: dict[str, list[FileInfo]], tars: int, parquets: int, images: list[FileInfo], sidecars: int
) -> str:
    """One line: what was taken, and what was not."""
    took, left = [], Counter({kind: len(files) for kind, files in kinds.items() if kind.startswith((".", "no "))})
    if tars:
        took.append(_count(tars, "webdataset shard"))
    if parquets:
        took.append(_count(parquets, "Parquet shard with images", "Parquet shards with images"))
    if images:
        took.append(f"a folder of {_count(len(images), 'picture')}")
    else:
        left["pictures" if tars or parquets else "pictures (--input_format)"] = len(kinds["image"])
    left["sidecar Parquet"] = sidecars
    left["Parquet"] = len(kinds["parquet"]) - parquets - sidecars
    left["tars"] = len(kinds["tar"]) - tars
    left["_stats.json"] = len(kinds["statistics"])
    ignored = ", ".join(f"{count:,} {kind}" for kind, count in sorted(left.items()) if count)
    return f"{name}: {' and '.join(took) or 'nothing to read'}" + (f"; not read: {ignored}" if ignored else "")


def _count(number: int, word: str, plural: str | None = None) -> str:
    return f"{number:,} {word if number == 1 else plural or word + 's'}"


def _nothing_to_read(pattern: str, files: list[FileInfo], folders: list[str], input_format: str) -> PlanError:
    if folders and not files and not any(storage.list_below(folder) for folder in folders):
        return PlanError(f"--input {pattern} is an empty folder; give one with pictures, .tar or .parquet files")
    if input_format != "auto":
        return PlanError(f"--input {pattern} holds nothing for --input_format {input_format}; leave that flag away")
    pictures = ", ".join(IMAGE_EXTENSIONS)
    return PlanError(f"--input {pattern} holds no pictures ({pictures}), .tar or .parquet files; check the path")


def _check_flags(plan: Plan, options: ReaderOptions) -> None:
    """A flag that no shard of this run can follow is a mistake, not a wish."""
    for flag, value, format_ in (
        ("image_extension", options.image_extension, "webdataset"),
        ("image_column", options.image_column, "parquet"),
        ("caption_column", options.caption_column, "parquet"),
        ("key_column", options.key_column, "parquet"),
    ):
        if value and format_ not in plan.formats:
            kind = "webdataset tars" if format_ == "webdataset" else "Parquet files"
            raise PlanError(f"--{flag} {value} is for {kind}, but --input has none; leave it away")
