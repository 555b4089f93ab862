"""Count samples with tarfile, csv, json and pyarrow alone, and compare the counts with those of a run.

`python tests/count_sources.py out/run.json INPUT...` exits with 1 if they differ. It shares no code with the readers.
"""

import csv
import itertools
import json
import os
import sys
import tarfile
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq

IMAGES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"}
TEXTS = (".txt", ".caption", ".text")


def count(paths):
    """Count the `samples` in folders and files, and how many offer an `image` and a `caption`."""
    total = Counter(samples=0, image=0, caption=0)
    for path in paths:
        for image, caption in itertools.chain.from_iterable(map(rows_of, shards_below(path))):
            total.update(samples=1, image=bool(image), caption=bool(caption))
    return total


def shards_below(path):
    if os.path.isfile(path):
        return [path]
    files = [os.path.join(folder, name) for folder, _, names in os.walk(path) for name in names]
    tars = [file for file in files if file.endswith((".tar", ".tar.gz", ".tgz"))]
    parquet = [file for file in files if file.endswith(".parquet") and holds_images(file)]
    return sorted(tars + parquet) or [path]


def holds_images(file):
    schema = pq.read_schema(file)
    return any("binary" in str(field.type) for field in schema)


def rows_of(shard):
    """Return (whether it offers an image, whether it offers a caption) for each sample."""
    if os.path.isdir(shard):
        return folder_rows(shard)
    extension = shard.rpartition(".")[2]
    if extension in ("tar", "gz", "tgz"):
        return tar_rows(shard)
    if extension == "parquet":
        table = pq.read_table(shard)
        for place, field in enumerate(table.schema):
            if pa.types.is_string(field.type):  # it need not be UTF-8
                table = table.set_column(place, field.name, table.column(place).cast(pa.binary()))
        return [table_row(row) for row in table.to_pylist()]
    with open(shard, newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        if extension == "jsonl":
            return [table_row(json.loads(line)) for line in file if line.strip()]
        return [table_row(row) for row in csv.DictReader(file, delimiter="\t" if extension == "tsv" else ",")]


def table_row(row):
    row = {name.lower(): value for name, value in row.items()}
    image = next((row[n] for n in ("image", "jpg", "uri", "url", "path", "file") if n in row), None)
    image = image.get("bytes") if isinstance(image, dict) else image
    caption = next((row[n] for n in ("caption", "text", "txt") if n in row), None)
    failed = row.get("status") in (b"failed_to_download", b"failed_to_resize") and image is None
    offered = image is not None and not (isinstance(image, str) and not image.strip())
    return offered, is_offered(caption) and not failed


def is_offered(caption):
    return caption is not None and not (isinstance(caption, (str, bytes)) and not caption.strip())


def folder_rows(folder):
    for place, _, names in os.walk(folder):
        for name in names:
            stem, extension = os.path.splitext(name)
            if extension.lower() in IMAGES and not name.startswith("."):
                texts = [os.path.join(place, stem + text) for text in TEXTS]
                found = next((text for text in texts if os.path.exists(text)), None)
                yield True, found is not None and is_offered(open(found, "rb").read())


def tar_rows(shard):
    members = []
    try:
        with tarfile.open(shard) as tar:
            for member in tar:
                base = os.path.basename(member.name)
                if member.isdir() or base.startswith("."):
                    continue
                stem, _, extension = base.partition(".")
                data = tar.extractfile(member).read() if member.isfile() else None
                members.append((os.path.join(os.path.dirname(member.name), stem), "." + extension.lower(), data))
    except (tarfile.TarError, EOFError, OSError):
        pass  # nobody can count the samples after the damage
    for _, group in itertools.groupby(members, key=lambda member: member[0]):
        found = {extension: data for _, extension, data in reversed(list(group))}
        image = any(os.path.splitext("x" + extension)[1] in IMAGES for extension in found)
        text = next((found[extension] for extension in TEXTS if extension in found), None)
        if text is None and ".json" in found:
            try:
                text = json.loads(found[".json"]).get("caption")
            except (ValueError, AttributeError):
                text = None
        yield image, is_offered(text)


def compare(run, paths):
    """Return the differences between these counts and those of a run, as sentences."""
    counts, mine, wrong = run["input"], count(paths), []
    if counts["samples"] != mine["samples"]:
        wrong.append(f"the run read {counts['samples']} samples, the sources hold {mine['samples']}")
    for modality in ("image", "caption"):
        offered = counts.get(f"{modality}.embedded", 0) + counts.get(f"{modality}.rejected", 0)
        if offered != mine[modality]:
            wrong.append(f"the run was offered {offered} {modality}s, the sources hold {mine[modality]}")
        if counts.get(f"{modality}.absent", 0) != mine["samples"] - mine[modality]:
            wrong.append(f"{counts.get(f'{modality}.absent', 0)} {modality}s are absent to the run")
    return wrong


if __name__ == "__main__":
    with open(sys.argv[1]) as opened:
        differences = compare(json.load(opened), sys.argv[2:])
    print("\n".join(differences) or "the counts agree")
    sys.exit(bool(differences))
