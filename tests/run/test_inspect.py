"""`inspect`: one screen for a dataset, for what a verb made, and for a file of theirs."""

import json
import shutil
from pathlib import Path

import duckdb
import numpy as np
import pytest
from conftest import ROOT
from inspected import facts, made_place, refusal  # noqa: F401

from benchmarks.datasets import write_rows
from pipelines import inspect as command
from pipelines.command_line import UsageError


def test_a_dataset_says_who_made_it_what_it_holds_and_whether_it_is_whole(place, tmp_path):
    what, found, further = facts(place / "out")
    assert what == "a dataset" and found["state"] == "complete" and found["labels"] == "animals"
    assert found["made by"] == "embed with none" and found["shards"] == str(place / "0.tar")
    assert [found[name] for name in ("rows", "images", "captions")] == ["8 in 1 part", "8 embedded", "8 embedded"]
    assert further[0] == f"python -m pipelines.browse --input {place}/out"
    shutil.copytree(place / "out", tmp_path / "out")
    (tmp_path / "out" / "_SUCCESS").unlink()
    assert facts(tmp_path / "out")[1]["state"] == "not complete: a run was killed, or is at work"
    run = {
        "run": "1",
        "command": ["python", "-m", "pipelines.embed", "--input", "a b"],
        "problems": ["too many rejects"],
    }
    (tmp_path / "out" / "run.json").write_text(json.dumps(run))
    _, found, further = facts(tmp_path / "out")
    assert found["state"] == "not complete: too many rejects"
    assert further == ("python -m pipelines.embed --input 'a b'",)
    (tmp_path / "out" / "embeddings" / "part-00000.parquet").write_bytes(b"PAR1")
    assert facts(tmp_path / "out")[1]["state"].startswith("1 part cannot be read")


@pytest.mark.parametrize(
    "name, what, key, value, further",
    [
        ("kept", "a selection", "rows", "3 kept of 8", "export --input {out} --selection {it} --output"),
        (
            "unique",
            "a selection without duplicates",
            "rows",
            "4 kept of 8",
            "report --input {out} --selection {it}",
        ),
        ("index", "an index for searches", "rows", "8 (flat)", "search --input {out} --index {it} --text"),
        ("found", "the results of a search", "rows", "8 found for 1 query", None),
        ("evaluated", "an evaluation", "found", "retrieval", None),
        ("vectors", "an export", "made by", "export: as npy, modality image caption", None),
        ("chosen", "an export", "rows", "0 exported, 8 left out", "embed --input '{it}/shards/*.tar' --output"),
    ],
)
def test_what_a_verb_made_says_so_and_names_the_command_to_use(place, name, what, key, value, further):
    found = facts(place / name)
    assert (found[0], found[1]["state"], found[1]["dataset"]) == (what, "complete", f"{place}/out")
    assert found[1][key] == value
    assert found[1]["made by"].startswith({"kept": "filter: by clip_score, top_fraction 0.3"}.get(name, ""))
    if further:
        assert found[2][0].startswith(f"python -m pipelines.{further.format(out=place / 'out', it=place / name)}")
    elif name == "found":
        assert found[2] == (f"duckdb -c \"FROM '{place}/found/results.parquet'\"",)
        assert len(duckdb.sql(found[2][0].split('"')[1]).fetchall()) == 8
    elif name == "evaluated":
        assert found[2] == (f"its numbers are in {place}/evaluated/metrics.json",)


def test_an_output_that_is_not_whole_or_of_a_changed_dataset_says_so(place, tmp_path):
    for name in ("out", "kept"):
        shutil.copytree(place / name, tmp_path / name)
    made = json.loads((tmp_path / "kept" / "_command.json").read_text())
    (tmp_path / "kept" / "_command.json").write_text(json.dumps(made | {"dataset": str(tmp_path / "out")}))
    write_rows(tmp_path / "out", [{"caption": ["other"], "caption_embedding": np.eye(1, 8)}])
    assert facts(tmp_path / "kept")[1]["dataset"] == f"{tmp_path}/out (changed since: make this again)"
    shutil.rmtree(tmp_path / "out")
    assert facts(tmp_path / "kept")[1]["dataset"] == f"{tmp_path}/out (not there any more)"
    (tmp_path / "kept" / "_SUCCESS").unlink()
    _, found, further = facts(tmp_path / "kept")
    assert found["state"].startswith("not complete") and further == () and "rows" not in found
    (tmp_path / "kept" / "_command.json").write_text("{")
    assert "is damaged, so nobody can tell what the folder is" in refusal(tmp_path / "kept")
    (tmp_path / "kept" / "_command.json").write_text(json.dumps(made | {"format": 99}))
    assert "has format 99" in refusal(tmp_path / "kept")


@pytest.mark.parametrize(
    "name, what",
    [
        ("out/embeddings/part-00000.parquet", "a part of the embeddings"),
        ("out/labels/animals/part-00000.parquet", "a part of the labels animals"),
        ("out/rejects/part-00000.parquet", "a part of the rejects"),
        ("out/embeddings", "embeddings of a dataset"),
        ("out/labels/animals", "labels/animals of a dataset"),
        ("out/_dataset.json", "_dataset.json of a dataset"),
        ("out/_SUCCESS", "_SUCCESS of a dataset"),
        ("kept/parts/part-00000.parquet", "a part of a selection"),
        ("kept/selection.json", "selection.json of a selection"),
        ("unique/groups/00000.parquet", "groups of duplicates"),
        ("found/results.parquet", "the results of a search"),
        ("evaluated/per_class.parquet", "the numbers of each class of an evaluation"),
        ("index/index.faiss", "a faiss index"),
        ("vectors/npy/image_embeddings.npy", "a NumPy array"),
        ("chosen/left_out.parquet", "the rows that an export left out"),
    ],
)
def test_a_file_inside_leads_to_its_folder(place, name, what):
    found, known, further = facts(place / name)
    assert found == what
    if " of a" not in found or "part" in found:
        assert further == (f"python -m pipelines.inspect {place}/{name.split('/')[0]}",)
    if what == "a part of the embeddings":
        assert known["rows"] == "8" and known["shard"] == str(place / "0.tar") and known["model"] == "d 8"


def test_a_dataset_of_an_earlier_release_and_the_record_of_its_run(tmp_path):
    old = Path(ROOT) / "tests" / "data" / "format_1" / "dataset"
    what, found, _ = facts(old)
    assert what == "a dataset" and found["rows"] == "5 in 2 parts"
    assert (found["images"], found["captions"]) == ("3 embedded, 1 rejected", "5 embedded")
    assert found["made by"] == "embed with demo, fp32 on cpu"
    what, found, further = facts(old / "run.json")
    assert what == "the record of a run" and found["command"].startswith("python -m pipelines.embed")
    assert found["state"] == "complete" and further == (f"python -m pipelines.inspect {old}",)
    assert facts(old / "taxonomies" / "colors.parquet")[:2] == (
        "the class embeddings of a taxonomy",
        {"classes": "3", "columns": "class, prompts, class_embedding"},
    )


def test_the_command_prints_one_screen(place, capsys, monkeypatch):
    assert command.main([str(place / "kept")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{place}/kept: a selection" and lines[1] == "  made by  filter: by clip_score, top_fraction 0.3"
    assert lines[-1].startswith("next: python -m pipelines.export") and len(lines) < 20
    assert command.main([str(place / "kept"), "--quiet"]) == 0 and capsys.readouterr().out == ""
    with pytest.raises(UsageError, match="PATH is missing: give a file or folder"):
        command.main([])
