"""deduplicate: the rows that stay among equal files and near duplicates, and how the command says it."""

import json
import math
import os
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import ROOT, make_tar, pair, rows_of, write_tar
from near_rows import (
    components,
    groups_of,
    kept_of,
    make_dataset,
    name_of,
    near,
    place_of,
    small_dataset,  # noqa: F401
    stored,
    written,
)

from benchmarks.datasets import write_rows
from clip_transforms import deduplicate_embeddings, filter_embeddings
from clip_transforms.parts.dataset import DatasetError
from clip_transforms.select import blocks
from pipelines import deduplicate

# Commands in this process; those in a process of their own, and the transforms, take Beam.
pytestmark = pytest.mark.usefixtures("without_beam")


@pytest.mark.parametrize("keep", ["score", "pixels", "first"])
@pytest.mark.parametrize("by", ["exact", "image", "caption", "pair"])
def test_one_row_of_each_group_stays_and_every_row_is_accounted_for(by, keep, small, tmp_path):
    content = deduplicate_embeddings(small, tmp_path / "kept", by=by, keep=keep)
    rows = stored(small)
    names = {"image": ["image_embedding"], "caption": ["caption_embedding"]}.get(
        by, ["image_embedding", "caption_embedding"]
    )
    if by == "exact":
        hashes = [row["image_sha256"] for row in rows]
        pairs = [(i, j) for j, b in enumerate(hashes) for i, a in enumerate(hashes[:j]) if a == b and a is not None]
        names = ["image_sha256"]
    else:
        pairs = near(rows, names, 0.95)
    groups = [sorted((rows[i] for i in group), key=lambda r: place_of(r, keep)) for group in components(pairs)]
    assert len(groups) > 5
    dropped = {name_of(row) for group in groups for row in group[1:]}
    assert kept_of(tmp_path / "kept") == sorted(name_of(row) for row in rows if name_of(row) not in dropped)
    found, similarity = groups_of(tmp_path / "kept")
    assert [(g[0], set(g)) for g in found] == sorted((name_of(g[0]), {name_of(r) for r in g}) for g in groups)
    for group in groups:
        for row in group:
            expected = min(np.dot(row[n], group[0][n]) for n in names) if by != "exact" else 1
            assert similarity[name_of(row)] == pytest.approx(expected, abs=1e-6)
    left_out = sum(any(row[name] is None for name in names) for row in rows)
    assert content["counts"] == {
        "seen": 350,
        "kept": 350 - len(dropped),
        "dropped": {by: len(dropped)},
        "null": 0,
    }
    assert content["duplicates"]["not_compared"] == left_out > 0
    assert content["duplicates"]["compared"] == 350 - left_out
    assert (content["duplicates"]["groups"], content["duplicates"]["grouped"]) == (len(groups), sum(map(len, groups)))
    assert json.loads((tmp_path / "kept" / "selection.json").read_text()) == content
    assert sorted(p.name for p in (tmp_path / "kept" / "parts").iterdir()) == sorted(
        p.name for p in (small / "embeddings").iterdir()
    )
    assert {p.name for p in (tmp_path / "kept").iterdir()} == {
        *("_command.json", "_SUCCESS", "groups", "parts", "selection.json")
    }


def test_the_measured_recall_is_that_of_the_rows_it_compares(small, tmp_path, monkeypatch):
    """Blocks without a margin miss pairs; the number says how many."""
    monkeypatch.setattr(blocks, "ONE_BLOCK_ROWS", 10)
    settings = {"by": "image", "threshold": 0.9, "recall": 0.01, "measure_recall": 1000}
    measured = deduplicate_embeddings(small, tmp_path / "kept", **settings)["duplicates"]["measured"]
    rows = stored(small)
    group_of = {name: i for i, group in enumerate(groups_of(tmp_path / "kept")[0]) for name in group}
    names = [name_of(row) for row in rows]
    pairs = list(near(rows, ["image_embedding"], 0.9))
    right = sum(names[i] in group_of and group_of[names[i]] == group_of.get(names[j], -1) for i, j in pairs)
    assert measured == {"pairs": 2 * len(pairs), "found": 2 * right} and 0 < right < len(pairs), "from both sides"


def test_the_command_says_what_it_did_and_does_it_once(small, tmp_path, capsys):
    out = tmp_path / "kept"
    argv = ["--input", str(small), "--output", str(out), "--by", "image", "--measure_recall", "1000"]
    assert deduplicate.main(argv) == 0
    content = json.loads((out / "selection.json").read_text())
    counts, found = content["counts"], content["duplicates"]
    lines = [
        f"350 rows = {counts['kept']} kept + {counts['dropped']['image']} dropped by image, in {out}",
        f"{found['groups']} groups of {found['grouped']} rows in {out}/groups",
        f"note: {found['not_compared']} rows without embedding stayed and were not compared",
        f"recall: {found['measured']['pairs']} of {found['measured']['pairs']} pairs share a group (100.00 %), of "
        f"{found['compared']} rows",
    ]
    assert capsys.readouterr().out.splitlines() == lines
    before = {path: os.stat(path).st_mtime_ns for path in out.rglob("*")}
    assert deduplicate.main(argv) == 0
    assert capsys.readouterr().out.splitlines() == [*lines, "nothing was left to do"]
    assert {path: os.stat(path).st_mtime_ns for path in out.rglob("*")} == before


def test_what_another_command_made_is_replaced_only_with_overwrite(small, tmp_path):
    deduplicate_embeddings(small, tmp_path / "kept", by="image")
    with pytest.raises(ValueError, match=r"threshold was 0\.95, now 0\.9.*--overwrite"):
        deduplicate_embeddings(small, tmp_path / "kept", by="image", threshold=0.9)
    deduplicate_embeddings(small, tmp_path / "kept", by="image", threshold=0.9, overwrite=True)
    deduplicate_embeddings(small, tmp_path / "new", by="image", threshold=0.9)
    assert written(tmp_path / "kept") == written(tmp_path / "new")


def test_a_selection_narrows_it_and_its_output_narrows_the_next_verb(small, tmp_path):
    filter_embeddings(small, tmp_path / "wide", where="width >= 5")
    content = deduplicate_embeddings(small, tmp_path / "kept", by="image", selection=tmp_path / "wide")
    wide = {name_of(row) for row in stored(small) if (row["width"] or 0) >= 5}
    rows = [row for row in stored(small) if name_of(row) in wide]
    groups = components(near(rows, ["image_embedding"], 0.95))
    dropped = {
        name_of(row)
        for group in groups
        for row in sorted((rows[i] for i in group), key=lambda r: place_of(r, "score"))[1:]
    }
    assert dropped and kept_of(tmp_path / "kept") == sorted(wide - dropped)
    assert content["counts"]["dropped"] == {"selection": 350 - len(wide), "image": len(dropped)}
    again = filter_embeddings(small, tmp_path / "again", sample_fraction=1.0, selection=tmp_path / "kept")
    assert again["counts"]["kept"] == len(wide - dropped)


def test_semdedup_keeps_the_rows_of_its_own_code(tmp_path):
    """SemDeDup's example: five vectors in a plane, the farthest from the centroid first."""
    angles = np.deg2rad([0, 10, 20, 50, 60])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    write_rows(tmp_path / "out", [{"image_embedding": vectors, "d": 2}])
    settings = {"by": "image", "threshold": math.cos(math.radians(12))}
    content = deduplicate_embeddings(tmp_path / "out", tmp_path / "kept", rule="semdedup", **settings)
    assert [row for _, row in kept_of(tmp_path / "kept")] == [0, 4]
    assert content["duplicates"]["groups"] == 2
    similarity = {row["row"]: row["similarity"] for row in rows_of(tmp_path / "kept", "groups")}
    ten = math.cos(math.radians(10))
    assert similarity == pytest.approx({0: 1, 1: ten, 2: ten, 3: ten, 4: 1}, abs=1e-6)
    deduplicate_embeddings(tmp_path / "out", tmp_path / "ours", **settings)
    assert [row for _, row in kept_of(tmp_path / "ours")] == [0, 3], "components with the smallest row kept"


def test_half_precision_is_compared_as_it_is_stored(tmp_path):
    make_dataset(tmp_path / "out", [120, 80], "float16")
    deduplicate_embeddings(tmp_path / "out", tmp_path / "kept", by="image", keep="first")
    rows = stored(tmp_path / "out")
    groups = components(near(rows, ["image_embedding"], 0.95))
    assert len(groups) > 5
    assert groups_of(tmp_path / "kept")[0] == [[name_of(rows[i]) for i in group] for group in groups]


def test_vectors_that_are_not_finite_or_have_no_length_stay_and_are_not_compared(tmp_path):
    vectors = np.eye(4, dtype=np.float32)[[0, 0, 1, 1, 2, 2]]
    vectors[2:4, 0], vectors[4:] = np.nan, 0
    write_rows(tmp_path / "out", [{"image_embedding": vectors, "d": 4}])
    content = deduplicate_embeddings(tmp_path / "out", tmp_path / "kept", by="image")
    assert [row for _, row in kept_of(tmp_path / "kept")] == [0, 2, 3, 4, 5]
    assert (content["duplicates"]["compared"], content["duplicates"]["not_compared"]) == (2, 4)


@pytest.mark.parametrize("by", ["exact", "image", "caption", "pair"])
def test_a_dataset_without_rows_gives_an_empty_selection(by, tmp_path, capsys):
    write_rows(tmp_path / "out", [{"image_embedding": [], "d": 4}])
    assert deduplicate.main(["--input", str(tmp_path / "out"), "--output", str(tmp_path / "kept"), "--by", by]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"0 rows = 0 kept, in {tmp_path}/kept",
        "note: the selection is empty",
        f"0 groups of 0 rows in {tmp_path}/kept/groups",
    ]
    assert rows_of(tmp_path / "kept", "groups") == rows_of(tmp_path / "kept", "parts") == []


def test_captions_alone_have_no_equal_files_and_their_captions_are_compared(embed, tmp_path):
    write_tar(tmp_path / "a.tar", [member for i in range(4) for member in pair(f"{i}", i, caption="a cat")[1:]])
    embed(tmp_path / "a.tar", output=tmp_path / "out")
    content = deduplicate_embeddings(tmp_path / "out", tmp_path / "exact")
    assert (content["counts"]["kept"], content["duplicates"]["not_compared"]) == (4, 4)
    content = deduplicate_embeddings(tmp_path / "out", tmp_path / "near", by="caption")
    assert content["counts"]["dropped"] == {"caption": 3} and content["duplicates"]["groups"] == 1
    assert deduplicate_embeddings(tmp_path / "out", tmp_path / "image", by="image")["duplicates"]["compared"] == 0


def test_equal_pictures_of_an_embedded_dataset_are_found(embed, tmp_path):
    write_tar(tmp_path / "a.tar", [m for i in range(4) for m in pair(f"{i}", i % 2, caption=f"number {i}")])
    make_tar(tmp_path / "b.tar", 3)
    embed(tmp_path / "*.tar", output=tmp_path / "out")
    content = deduplicate_embeddings(tmp_path / "out", tmp_path / "exact", keep="first")
    assert [(os.path.basename(shard), row) for shard, row in kept_of(tmp_path / "exact")] == [
        ("a.tar", 0),
        ("a.tar", 1),
        ("b.tar", 2),
    ]
    assert content["counts"] == {"seen": 7, "kept": 3, "dropped": {"exact": 4}, "null": 0}
    near_ones = deduplicate_embeddings(tmp_path / "out", tmp_path / "near", by="image", threshold=1.0)
    assert near_ones["duplicates"]["grouped"] >= 6, "equal pictures have equal embeddings"


def test_a_dataset_without_success_is_deduplicated_with_a_warning(small, tmp_path, caplog):
    make_dataset(tmp_path / "out", [20])
    (tmp_path / "out" / "_SUCCESS").unlink()
    assert deduplicate_embeddings(tmp_path / "out", tmp_path / "kept")["counts"]["seen"] == 20
    assert "has no _SUCCESS" in caplog.text


def test_two_fingerprints_in_one_dataset_are_refused(small, tmp_path):
    make_dataset(tmp_path / "out", [20])
    make_dataset(tmp_path / "other", [20, 20], "float16")
    name = "part-00001.parquet"
    for kind in ("embeddings", "rejects"):
        (tmp_path / "out" / kind / name).write_bytes((tmp_path / "other" / kind / name).read_bytes())
    with pytest.raises(DatasetError, match="made with other settings"):
        deduplicate_embeddings(tmp_path / "out", tmp_path / "kept")
    assert not (tmp_path / "kept").exists()


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--by", "sound"], ["sound", "exact", "pair"]),
        (["--keep", "best"], ["best", "score", "first"]),
        (["--threshold", "0.9"], ["--threshold is 0.9", "--by exact", "--by image"]),
        (["--by", "image", "--threshold", "0"], ["--threshold is 0", "above 0 and at most 1"]),
        (["--by", "image", "--threshold", "nan"], ["--threshold is nan", "above 0 and at most 1"]),
        (["--by", "image", "--recall", "1.5"], ["--recall is 1.5", "above 0 and at most 1"]),
        (["--by", "image", "--seed", "-1"], ["--seed is -1", "0 or more"]),
        (["--by", "image", "--measure_recall", "-1"], ["--measure_recall is -1", "0 or more"]),
        (["--by", "image", "--rule", "semdedup", "--keep", "first"], ["--keep", "--rule semdedup", "omit it"]),
        (["--by", "image", "--rule", "semdedup", "--recall", "0.9"], ["--recall", "--rule semdedup", "omit it"]),
        (["--selection", "nowhere.parquet"], ["nowhere.parquet", "does not exist"]),
    ],
)
def test_wrong_arguments_are_one_sentence_and_write_nothing(argv, said, small, tmp_path):
    with pytest.raises(ValueError) as error:
        deduplicate.main(["--input", str(small), "--output", str(tmp_path / "kept"), *argv])
    assert all(word in str(error.value) for word in said) and "\n" not in str(error.value)
    assert not (tmp_path / "kept").exists()


def test_a_dataset_and_a_selection_on_an_object_store(small, tmp_path, monkeypatch):
    import fsspec

    monkeypatch.setattr(blocks, "ONE_BLOCK_ROWS", 100)
    fs = fsspec.filesystem("memory")
    fs.put(f"{small}/", "/deduplicate/out/", recursive=True)
    try:
        deduplicate_embeddings("memory://deduplicate/out", "memory://deduplicate/kept", by="image")
        fs.get("/deduplicate/kept/", f"{tmp_path}/there/", recursive=True)
        deduplicate_embeddings(small, tmp_path / "here", by="image")
        assert kept_of(tmp_path / "there") == kept_of(tmp_path / "here")
        assert sorted(os.listdir(tmp_path / "there")) == sorted(os.listdir(tmp_path / "here"))
    finally:
        fs.rm("/deduplicate", recursive=True)


def test_groups_have_the_columns_that_are_documented(small, tmp_path):
    deduplicate_embeddings(small, tmp_path / "kept", by="image")
    (path,) = (tmp_path / "kept" / "groups").iterdir()
    schema = pq.read_schema(path)
    assert schema.names == ["group", "key", "shard", "row", "kept", "similarity"]
    assert (schema.field("similarity").type, schema.field("row").type) == (pa.float32(), pa.int64())


def test_no_verb_over_a_dataset_needs_pandas(small, tmp_path):
    """It comes with the tests' packages only, so its absence would be noticed by users alone."""
    code = """
import sys
class NoPandas:
    def find_spec(self, name, *_):
        if name.partition(".")[0] == "pandas":
            raise ModuleNotFoundError("No module named 'pandas'", name=name)
sys.meta_path.insert(0, NoPandas())
from clip_transforms import deduplicate_embeddings, export_embeddings, filter_embeddings
small, out = sys.argv[1:]
for by in ("exact", "image", "caption", "pair"):
    deduplicate_embeddings(small, f"{out}/{by}", by=by)
filter_embeddings(small, f"{out}/kept", where="clip_score > 0", by="image_embedding[1]", top_count=3)
for layout in ("clip_retrieval", "npy"):
    export_embeddings(small, f"{out}/{layout}", layout, selection=f"{out}/kept", modality="image")
export_embeddings(small, f"{out}/uids", "datacomp_uids", selection=f"{out}/kept")
"""
    argv = [sys.executable, "-c", code, str(small), str(tmp_path)]
    done = subprocess.run(argv, capture_output=True, text=True, cwd=ROOT, timeout=100)
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob("*/_SUCCESS"))) == 8
