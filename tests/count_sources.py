"""Count samples with tarfile, csv, json, protobuf and pyarrow alone, and compare the counts with those of a run.

`python tests/count_sources.py out/run.json INPUT...` exits with 1 if they differ. It shares no code with the readers.
`--caption NAME` before the inputs is the run's `--caption_column` for tars and folders.
"""

import bz2
import csv
import gzip
import io
import itertools
import json
import lzma
import os
import re
import sys
import tarfile
from collections import Counter
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import tfrecords

IMAGES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".jfif", ".jpe", ".pjpeg", ".pjp"}
IMAGES |= {".heic", ".heif", ".hif"}  # with the extra [heic], which the tests have
TEXTS = (".txt", ".caption", ".text")
BEGINNINGS = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"RIFF", b"BM", b"II*\0", b"MM\0*")
NO_SAMPLES = {"@eadir", "#recycle", "$recycle.bin", "lost+found", "__macosx"}
LISTING = re.compile(r"\.(csv|tsv|jsonl|ndjson|json)(\.gz|\.bz2|\.xz)?$")
OPEN = {"gz": gzip.open, "bz2": bz2.open, "xz": lzma.open}


def count(paths, caption=None):
    """Count the `samples` in folders and files, and how many offer an `image` and a `caption`.

    `caption` names the field of the JSON, or the extension, that holds the caption in tars and folders.
    For `--captions all`, where a list without a text offers nothing, also those `with_captions`, and all `captions`.
    """
    total = Counter(samples=0, image=0, caption=0, with_captions=0, captions=0)
    for path in paths:
        for image, text in itertools.chain.from_iterable(rows_of(shard, caption) for shard in shards_below(path)):
            total.update(samples=1, image=bool(image), caption=is_offered(text))
            total.update(with_captions=number_of(text) > 0, captions=number_of(text))
    return total


def files_below(path):
    """Yield every file but those in hidden and in service folders."""
    for folder, folders, names in os.walk(path):
        folders[:] = [n for n in folders if not n.startswith(("_", ".")) and n.lower() not in NO_SAMPLES]
        yield from (os.path.join(folder, name) for name in names if not name.startswith("."))


def is_picture(name, read):
    extension = os.path.splitext(name)[1].lower()
    return extension in IMAGES or (not extension and read().startswith(BEGINNINGS))


def shards_below(path):
    if os.path.isfile(path):
        return [path]
    files = list(files_below(path))
    tars = [file for file in files if file.lower().endswith((".tar", ".tar.gz", ".tgz", ".tar.zst", ".tfrecord"))]
    parquet = [file for file in files if file.lower().endswith((".parquet", ".parq", ".pq")) and holds_images(file)]
    return sorted(tars + parquet) or [path]


def holds_images(file):
    schema = pq.read_schema(file)
    return any("binary" in str(field.type) for field in schema)


def rows_of(shard, wanted=None):
    """Return (whether it offers an image, the value that is its caption or captions) for each sample."""
    if os.path.isdir(shard):
        return folder_rows(shard, wanted)
    if LISTING.search(shard):
        return map(table_row, listing_rows(shard))
    extension = shard.rpartition(".")[2]
    if extension.lower() in ("tar", "gz", "tgz", "zst"):
        return tar_rows(shard, wanted)
    if extension == "tfrecord":
        with open(shard, "rb") as file:
            return [tfrecord_row(record.features.feature) for record in tfrecords.records(file.read())]
    table = with_named_image(pq.read_table(shard))
    for place, field in enumerate(table.schema):
        if pa.types.is_string(field.type):  # it need not be UTF-8
            table = table.set_column(place, field.name, table.column(place).cast(pa.binary()))
    return [table_row(row) for row in table.to_pylist()]


def listing_rows(file):
    """Return the rows of a CSV, TSV or JSON file as dicts."""
    with OPEN.get(file.rpartition(".")[2], open)(file, "rb") as opened:
        data = opened.read()
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    text = re.sub("\r\n?", "\n", data.decode(encoding, "surrogateescape"))
    lines = [line for line in text.split("\n") if line.strip(" ")]
    if "json" in LISTING.search(file)[1]:
        return json.loads(text) if re.match(r"\s*\[\s*\{", text) else [json.loads(line) for line in lines]
    header = lines[0] if lines else ""
    separator = max(",\t;|", key=header.count)
    plain = separator == "\t" and '"' not in header and {line.count("\t") for line in lines} == {header.count("\t")}
    text = text if '""' in text else text.replace('\\"', '""')  # as Spark escapes quotes
    rows = csv.reader(text.split("\n"), delimiter=separator, quoting=csv.QUOTE_NONE if plain else csv.QUOTE_MINIMAL)
    rows = [row for row in rows if row]
    names = [name.strip() for name in rows[0]] if rows else []
    return [dict(itertools.zip_longest(names, row[: len(names)])) for row in rows[1:]]


def with_named_image(table):
    """Call a column of pictures that has no usual name `image`."""
    usual = {"image", "image_bytes", "bytes", *(extension[1:] for extension in IMAGES)}
    if any(field.name.lower() in usual and not pa.types.is_string(field.type) for field in table.schema):
        return table
    for place, field in enumerate(table.schema):
        values = table.column(place).drop_null().to_pylist() if pa.types.is_binary(field.type) else []
        if any(value.startswith((b"\xff\xd8\xff", b"\x89PNG")) for value in values[:16]):
            return table.set_column(place, "image", table.column(place))
    return table


def table_row(row):
    row = {name.lower(): value for name, value in row.items()}
    image = next((row[n] for n in ("image", "jpg", "uri", "url", "path", "file", "filepath") if n in row), None)
    if isinstance(image, dict):
        image = image.get("bytes") if image.get("bytes") is not None else image.get("path")
    caption = next((row[n] for n in ("caption", "text", "txt", "title") if n in row), None)
    if caption is None and isinstance(row.get("json"), dict):
        caption = row["json"].get("caption")
    failed = row.get("status") in (b"failed_to_download", b"failed_to_resize") and image is None
    offered = image is not None and not (isinstance(image, str) and not image.strip())
    return offered, None if failed else caption


class File(NamedTuple):
    """The content of a text file, whose lines may be captions of their own."""

    data: bytes


def number_of(caption):
    """Return how many captions a value is with `--captions all`."""
    found = caption.data.splitlines() if isinstance(caption, File) else caption
    return sum(map(is_offered, found if isinstance(found, list) else [found]))


def is_offered(caption):
    caption = caption.data if isinstance(caption, File) else caption
    return caption is not None and not (isinstance(caption, (str, bytes)) and not caption.strip())


def tfrecord_row(features):
    image = next((features[name] for name in ("jpg", "png", "webp", "image") if name in features), None)
    text = next((features[name].bytes_list.value for name in ("txt", "caption", "text") if name in features), [])
    return image is not None and len(image.bytes_list.value) > 0, text[0] if len(text) == 1 else list(text) or None


def field(fields, name):
    """The field `a.b[0]` of a JSON object."""
    for step in name.replace("[", ".").replace("]", "").split("."):
        try:
            fields = fields[int(step)] if isinstance(fields, list) else fields[step]
        except (KeyError, IndexError, TypeError, ValueError):
            return None
    return fields


def folder_rows(folder, wanted=None):
    for path in files_below(folder):
        stem = os.path.splitext(path)[0]
        with open(path, "rb") as file:
            if not is_picture(path, file.read):
                continue
        texts = [stem + text for text in (TEXTS if wanted is None else [f".{wanted}"])]
        texts = [case for text in texts for case in (text, stem + os.path.splitext(text)[1].upper())]
        found = next((text for text in texts if os.path.exists(text) and os.path.getsize(text)), None)
        caption = None if found is None else File(open(found, "rb").read())
        if caption is None and wanted and os.path.exists(f"{stem}.json"):
            caption = field(json.load(open(f"{stem}.json")), wanted)
        yield True, caption


def tar_rows(shard, wanted=None):
    members = []
    try:
        with open(shard, "rb") as file:
            data = file.read()
        if data.startswith(b"\x28\xb5\x2f\xfd"):
            data = pa.input_stream(io.BytesIO(data), compression="zstd").read()
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            for member in tar:
                base = os.path.basename(member.name)
                if member.isdir() or base.startswith("."):
                    continue
                stem, _, extension = base.partition(".")
                data = tar.extractfile(member).read() if member.isfile() else None
                extension = "." + extension.lower() if extension else ""
                members.append((os.path.join(os.path.dirname(member.name), stem), extension, data))
    except (tarfile.TarError, EOFError, OSError):
        pass  # nobody can count the samples after the damage
    for _, group in itertools.groupby(members, key=lambda member: member[0]):
        found = {extension: data for _, extension, data in reversed(list(group))}
        image = any(is_picture("x" + extension, lambda data=data: data or b"") for extension, data in found.items())
        texts = TEXTS if wanted is None else [f".{wanted}"]
        text = next((File(found[name]) for name in texts if is_offered(found.get(name))), None)
        if text is None and ".json" in found:
            try:
                text = field(json.loads(found[".json"]), wanted or "caption")
            except (ValueError, AttributeError):
                text = None
        yield image, text


def compare(run, paths, caption=None):
    """Return the differences between these counts and those of a run, as sentences."""
    counts, mine, wrong = run["input"], count(paths, caption), []
    if "captions.offered" in counts:
        mine["caption"] = mine["with_captions"]
    if counts["samples"] != mine["samples"]:
        wrong.append(f"the run read {counts['samples']} samples, the sources hold {mine['samples']}")
    for modality in ("image", "caption"):
        offered = counts.get(f"{modality}.embedded", 0) + counts.get(f"{modality}.rejected", 0)
        if offered != mine[modality]:
            wrong.append(f"the run was offered {offered} {modality}s, the sources hold {mine[modality]}")
        if counts.get(f"{modality}.absent", 0) != mine["samples"] - mine[modality]:
            wrong.append(f"{counts.get(f'{modality}.absent', 0)} {modality}s are absent to the run")
    if "captions.offered" in counts:
        kept = counts["captions.embedded"] + counts["captions.rejected"]
        if not counts["captions.offered"] == kept == mine["captions"]:
            wrong.append(f"{counts['captions.offered']} captions were read and {kept} kept, of {mine['captions']}")
    return wrong


if __name__ == "__main__":
    named = sys.argv[2:3] == ["--caption"]
    with open(sys.argv[1]) as opened:
        differences = compare(json.load(opened), sys.argv[4 if named else 2 :], sys.argv[3] if named else None)
    print("\n".join(differences) or "the counts agree")
    sys.exit(bool(differences))
