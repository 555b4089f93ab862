"""search: queries, arguments, datasets and outputs that are refused, and odd datasets."""

import importlib
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import command
from filtered import files
from searched import D, made_pictures, made_single, unit  # noqa: F401

from benchmarks.datasets import write_rows
from clip_transforms import search_embeddings
from pipelines import search

# Commands in this process; those in a process of their own, and the transforms, take Beam.
pytestmark = pytest.mark.usefixtures("without_beam")


@pytest.mark.parametrize("value", [None, float("nan"), float("inf")])
def test_a_query_that_is_not_finite_is_one_sentence(single, tmp_path, value):
    pq.write_table(pa.table({"embedding": [[*[1.0] * (D - 1), value]]}), tmp_path / "q.parquet")
    with pytest.raises(ValueError, match="is an embedding that holds a null, NaN or infinity; leave it out"):
        search_embeddings(single, queries=tmp_path / "q.parquet")


def test_rows_without_an_embedding_are_no_results_and_no_fault(tmp_path):
    """Of one part no row has an embedding, and of another none of the wanted rows."""
    some = {"image_embedding": [*unit(np.eye(4)[:2]), None], "width": [1, 2, 3], "d": 4}
    none = {"image_embedding": [None] * 2, "width": [4, 5], "d": 4}
    out = write_rows(tmp_path / "out", [some, none, some])
    table = pa.table({"embedding": [[1.0, 0, 0, 0]]})
    pq.write_table(table, tmp_path / "q.parquet")
    for number, (where, found) in enumerate(((None, 4), ("width <> 2", 2), ("width > 2", 0), ("width = 5", 0))):
        folder = tmp_path / f"found-{number}"
        search_embeddings(out, folder, queries=tmp_path / "q.parquet", where=where)
        assert pq.read_table(folder / "results.parquet").num_rows == found, where


def test_the_same_command_again_does_nothing_and_another_is_refused(pictures, tmp_path, capsys, without_beam):
    argv = ["--input", str(pictures / "out"), "--output", str(tmp_path / "found"), "--like", "000003"]
    assert search.main(argv) == 0
    first, said = files(tmp_path / "found"), capsys.readouterr().out
    assert search.main(argv) == 0 and files(tmp_path / "found") == first
    assert capsys.readouterr().out == said + "nothing was left to do\n"
    with pytest.raises(ValueError, match="made by another command: like was .*000003.*, now .*000004.*--overwrite"):
        search.main([*argv[:-1], "000004"])
    (tmp_path / "found" / "results.parquet").unlink()
    assert search.main(argv) == 0 and files(tmp_path / "found") == first
    assert search.main([*argv[:-1], "000004", "--overwrite"]) == 0
    assert pq.read_table(tmp_path / "found" / "results.parquet")["key"][0].as_py() == "000004"


WRONG = {
    "no query": ([], "nothing is asked for; give --text, --image, --like or --queries"),
    "empty text": (["--text", " "], "--text is an empty text"),
    "unknown key": (["--like", "nobody"], r"--like nobody is no key of .*SHARD#ROW"),
    "unknown row": (["--like", "{folder}/a.tar#77"], "--like .*a.tar#77 is no key.*; its columns key"),
    "a file": (["--like", "{folder}/a.tar"], "no SHARD#ROW; it is a file, so give --image .*/a.tar"),
    "key of two": (["--like", "000001"], r"key of 2 samples in .*; name one .*a.tar#1' or '.*b.tar#0'"),
    "no such embedding": (["--like", "only text"], "--like only text lacks an embedding of its image"),
    "no image": (["--image", "{folder}/none.jpg"], "--image .*none.jpg is no file"),
    "not an image": (["--image", "{folder}/animals.txt"], "--image .*animals.txt is no picture"),
    "no queries": (["--queries", "{folder}/none.txt"], "--queries .*none.txt is no file"),
    "empty queries": (["--queries", "{folder}/empty.txt"], "empty.txt is empty"),
    "other columns": (["--queries", "{folder}/other.csv"], "must have a column text or embedding, but it has a, b"),
    "other length": (["--queries", "{folder}/short.csv"], "has 2 values in row 0 of embedding, .* have 48"),
    "zero": (["--queries", "{folder}/zero.csv"], "--queries .*zero.csv: 0 is an embedding of length 0"),
    "k": (["--text", "a", "--top_k", "0"], "--top_k is 0, but"),
    "against": (["--text", "a", "--against", "pixels"], "--against is 'pixels', but it must be image, caption or both"),
    "column": (["--text", "a", "--where", "widht > 3"], "widht.*width"),
    "selection": (["--text", "a", "--selection", "{folder}"], "is no selection"),
    "model for nothing": (["--like", "000003", "--model", "demo"], "--model demo embeds texts and pictures"),
    "another model": (["--text", "a", "--model", "demo"], "--model demo is given, but .* was made with --model"),
    "overwrite what": (["--text", "a", "--overwrite"], "--overwrite does nothing without --output"),
    "what would be done": (["--text", "a", "--dry_run"], "--dry_run does nothing without --output"),
    "runner for what": (
        ["--text", "a", "--direct_num_workers", "2"],
        "--direct_num_workers does nothing without --out",
    ),
    "no dataset": (["--text", "a", "--input", "{folder}"], "is not a dataset of this program"),
}


@pytest.mark.parametrize("flags, message", WRONG.values(), ids=WRONG.keys())
def test_wrong_input_is_one_sentence_and_nothing_is_written(pictures, flags, message, tmp_path):
    (pictures / "empty.txt").write_text("\n")
    (pictures / "other.csv").write_text("a,b\n1,2\n")
    (pictures / "short.csv").write_text('embedding\n"[1, 2]"\n')
    (pictures / "zero.csv").write_text(f'embedding\n"{[0.0] * 48}"\n')
    before = files(pictures / "out")
    flags = [flag.format(folder=pictures) for flag in flags]
    with pytest.raises(ValueError, match=message) as caught:
        search.main(["--input", str(pictures / "out"), *flags])
    assert "\n" not in str(caught.value)
    if "without" not in message:
        with pytest.raises(ValueError, match=message):
            search.main(["--input", str(pictures / "out"), *flags, "--output", str(tmp_path / "found")])
    assert files(pictures / "out") == before and not (tmp_path / "found").exists()


def test_the_command_ends_with_2_and_one_line(pictures):
    done = command("pipelines.search", "--input", pictures / "out", "--like", "nobody")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: --like nobody is no key") and done.stderr.count("\n") == 1


@pytest.fixture
def copy(single, tmp_path):
    return Path(shutil.copytree(single, tmp_path / "copy"))


def test_an_unfinished_dataset_is_searched_with_a_warning(copy, caplog):
    (copy / "_SUCCESS").unlink()
    assert search_embeddings(copy, like="/shards/b.tar#0", top_k=1).num_rows == 1
    assert "has no _SUCCESS" in caplog.text


def test_labels_that_are_missing_are_left_out_with_a_warning_but_not_from_where(copy, caplog):
    (copy / "labels" / "animals" / "part-00002.parquet").unlink()
    results = search_embeddings(copy, like="/shards/b.tar#0", top_k=1)
    assert results["labels"].to_pylist() == [[]] and "the results are without these labels" in caplog.text
    with pytest.raises(ValueError, match="has no labels/animals for 1 of 4 parts"):
        search_embeddings(copy, like="/shards/b.tar#0", where="animals.label = 'cat'")


def test_two_fingerprints_are_refused(copy):
    made = json.loads((copy / "_dataset.json").read_text())
    made["settings"]["precision"] = "other"
    (copy / "_dataset.json").write_text(json.dumps(made))
    with pytest.raises(ValueError, match="an --overwrite was interrupted"):
        search_embeddings(copy, like="/shards/b.tar#0")


def test_captions_alone_are_searched_without_being_asked_for(tmp_path):
    write_rows(tmp_path / "out", [{"caption_embedding": np.eye(3, 4), "caption": list("abc")}])
    results = search_embeddings(tmp_path / "out", like="000001", top_k=1)
    assert results["caption"].to_pylist() == ["b"] and results["labels"].to_pylist() == [[]]
    with pytest.raises(ValueError, match="--against is image, but .* holds no image embeddings; --against caption"):
        search_embeddings(tmp_path / "out", like="000001", against="image")


def test_an_empty_dataset_gives_an_empty_result(tmp_path):
    write_rows(tmp_path / "out", [{"image_embedding": np.empty((0, 4)), "d": 4}])
    pq.write_table(pa.table({"embedding": [[1.0, 0, 0, 0]]}), tmp_path / "q.parquet")
    assert search_embeddings(tmp_path / "out", tmp_path / "found", queries=tmp_path / "q.parquet").num_rows == 0


def test_a_part_that_is_replaced_meanwhile_is_an_error(single, copy, monkeypatch, tmp_path, capsys):
    steps = importlib.import_module("clip_transforms.run.search_steps")
    real = steps.read_vectors

    def read(*args):
        write_rows(tmp_path / "new", [{"image_embedding": unit(np.ones((3, D)))}])
        shutil.copy(tmp_path / "new/embeddings/part-00000.parquet", copy / "embeddings/part-00000.parquet")
        yield from real(*args)

    monkeypatch.setattr(steps, "read_vectors", read)
    assert search.main(["--input", str(copy), "--like", "/shards/a.parquet#0"]) == 1
