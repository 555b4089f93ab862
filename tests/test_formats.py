"""A dataset of format 1, written before the house was rebuilt, is read, resumed and labelled; a newer one is refused.

`tests/data/format_1` was written by the embed command of November 2026 from two sources on fsspec's memory file system:
a tar and a folder. It must never be written anew: it stands for the datasets that people have.
"""

import datetime
import importlib
import json
import shutil
import tarfile
from pathlib import Path

import fsspec
import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import files_of, rows_of

from clip_transforms import (
    ClipSpec,
    Dataset,
    ReaderOptions,
    Taxonomy,
    embed_shards,
    export_embeddings,
    label_embeddings,
    read_embeddings,
)
from pipelines import embed, label
from schemas.embeddings import reserved_names
from schemas.provenance import FORMAT_VERSION, FormatError
from schemas.samples import Column

OLD = Path(__file__).parent / "data" / "format_1"
INPUTS = ["memory://before/shard.tar", "memory://before/photos"]


@pytest.fixture
def old(tmp_path):
    """A copy of the old dataset, with its sources where it found them."""
    fs = fsspec.filesystem("memory")
    for path in (path for path in (OLD / "sources").rglob("*") if path.is_file()):
        name = f"/before/{path.relative_to(OLD / 'sources')}"
        fs.pipe_file(name, path.read_bytes())
        fs.store[name].created = datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc)  # part of its stamp
    yield Path(shutil.copytree(OLD / "dataset", tmp_path / "dataset"))
    fs.rm("/before", recursive=True)


def colors():
    return Taxonomy.load(str(OLD / "colors.txt"))


def run_again(old, **settings):
    reader = ReaderOptions(columns=(Column.parse("licence", reserved_names()),))
    spec = ClipSpec("demo", precision="fp32")
    return embed_shards(INPUTS, str(old), spec, [colors()], reader=reader, max_reject_fraction=0.5, **settings)


def test_it_is_read(old):
    dataset = Dataset.open(str(old))
    assert (dataset.embed_dim, dataset.taxonomies, len(dataset.parts)) == (64, ["colors"], 2)
    table = dataset.to_table(["key", "caption", "licence", "colors.label"], labels=["colors"])
    assert sorted(table.to_pylist(), key=lambda row: row["key"]) == [
        {"key": "a", "caption": "a red circle", "licence": "cc0", "colors.label": "red"},
        {"key": "b", "caption": "a blue square", "licence": None, "colors.label": "red"},
        {"key": "c", "caption": "a broken picture", "licence": None, "colors.label": None},
        {"key": "d", "caption": "words alone", "licence": None, "colors.label": None},
        {"key": "e.jpg", "caption": "a green star", "licence": None, "colors.label": "green"},
    ]
    keys, images = dataset.embeddings("image")
    assert sorted(keys["key"].to_pylist()) == ["a", "b", "e.jpg"] and images.shape == (3, 64)
    assert np.linalg.norm(images, axis=1) == pytest.approx(1, abs=1e-6)
    assert [row["key"] for row in rows_of(old, "rejects")] == ["c"]


def test_its_pictures_are_exported_from_where_they_were(old, tmp_path):
    made = export_embeddings(str(old), tmp_path / "tars", "webdataset")
    assert made["counts"] == {"selected": 5, "exported": 5, "left_out": {}, "files": 1}
    with tarfile.open(tmp_path / "tars" / "shards" / "00000.tar") as tar:
        found = {member.name: tar.extractfile(member).read() for member in tar}
    assert found["e.jpg"] == (OLD / "sources" / "photos" / "e.jpg").read_bytes()
    assert found["a.txt"] == b"a red circle" and json.loads(found["a.json"])["licence"] == "cc0"
    with tarfile.open(OLD / "sources" / "shard.tar") as tar:
        assert [found[name] for name in ("a.jpg", "b.png")] == [tar.extractfile(n).read() for n in ("a.jpg", "b.png")]
    assert [name for name in found if name[0] in "cd"] == ["c.txt", "c.json", "d.txt", "d.json"]


def test_it_is_resumed_and_nothing_is_made_anew(old):
    before = files_of(old)
    result = run_again(old)
    assert result["units"] == {"input": 2, "committed": 0, "skipped": 2, "labelled": 0} and result["complete"]
    assert files_of(old) == before and len(before) == 6


def test_it_is_resumed_by_the_command_where_a_part_is_missing(old, capsys):
    before = files_of(old)
    next((old / "embeddings").glob("shard-*")).unlink()
    flags = ["--model", "demo", "--precision", "fp32", "--columns", "licence", "--max_reject_fraction", "0.5"]
    code = embed.main(["--input", *INPUTS, "--output", str(old), *flags, "--taxonomy", str(OLD / "colors.txt")])
    assert code == 0 and "1 unit committed, 1 skipped" in capsys.readouterr().out
    assert files_of(old).keys() == before.keys() and len(rows_of(old)) == 5


def test_it_is_labelled_with_other_words(old):
    result = label_embeddings(str(old), [Taxonomy.from_json("shapes", {"classes": ["circle", "square"]})])
    assert result["labelled"] == {"parts": 2, "rows": 5} and (old / "_SUCCESS").exists()
    assert len(rows_of(old, "labels/shapes")) == 5 and Dataset.open(str(old)).taxonomies == ["colors", "shapes"]


def as_format(path, version):
    """Write a file of a dataset anew as if a newer version had written it."""
    if path.suffix == ".json":
        path.write_text(json.dumps({**json.loads(path.read_text()), "format": version}))
        return
    table = pq.ParquetFile(path).read()
    footer = {**json.loads(table.schema.metadata[b"clip"]), "format": version}
    pq.write_table(table.replace_schema_metadata({b"clip": json.dumps(footer)}), path)


def label_again(old):
    return label_embeddings(str(old), [colors()])


def run_command(old):
    flags = ["--model", "demo", "--precision", "fp32", "--columns", "licence", "--taxonomy", str(OLD / "colors.txt")]
    return embed.main(["--input", *INPUTS, "--output", str(old), *flags])


def label_command(old):
    return label.main(["--input", str(old), "--taxonomy", str(OLD / "colors.txt")])


def overwrite(old):
    return run_again(old, overwrite=True)


def read_with_labels(old):
    return list(read_embeddings(str(old), labels=["colors"]))


EVERYONE = [run_again, run_command, overwrite, label_again, label_command, read_with_labels]


@pytest.mark.parametrize("reader", EVERYONE, ids=lambda function: function.__name__)
@pytest.mark.parametrize("version", [FORMAT_VERSION + 98, "2"], ids=["99", "text"])
@pytest.mark.parametrize("kind", ["embeddings", "_dataset.json", "labels/colors"])
def test_a_newer_format_is_refused_by_every_reader(kind, version, reader, old):
    path = old / kind if kind.endswith("json") else next((old / kind).glob("*.parquet"))
    as_format(path, FORMAT_VERSION)
    reader(old)
    as_format(path, version)
    before = files_of(old)
    with pytest.raises(FormatError) as refused:
        reader(old)
    said = f"{path} has format {version!r}, but this version of clip-transforms reads formats up to {FORMAT_VERSION}; "
    assert str(refused.value).startswith(said) and files_of(old) == before and not (old / "_temporary").exists()


@pytest.mark.parametrize(
    "kind, reader",
    [("rejects", run_again), ("taxonomies", run_again), ("taxonomies", label_again)],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_so_it_is_in_the_files_that_only_some_read(kind, reader, old):
    path = next((old / kind).glob("*.parquet"))
    as_format(path, FORMAT_VERSION)
    reader(old)
    as_format(path, 99)
    with pytest.raises(FormatError, match=f"{path} has format 99"):
        reader(old)


def test_the_functions_are_public_whatever_was_imported_first():
    importlib.import_module("clip_transforms.embed_shards")
    package = importlib.import_module("clip_transforms")
    for name in ("embed_shards", "label_embeddings", "read_embeddings"):
        assert callable(getattr(package, name)) and getattr(package, name).__name__ == name
