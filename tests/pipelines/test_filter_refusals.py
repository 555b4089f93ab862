"""Filter: datasets as they are, and wrong input."""

import shutil

import numpy as np
import pytest
from conftest import command, make_folder, make_tar
from filtered import kept, select, write, write_csv

from benchmarks.datasets import write_rows
from clip_transforms import Dataset, FilterEmbeddings, filter_embeddings, label_embeddings
from clip_transforms.parts.dataset import DatasetError
from clip_transforms.parts.manifest import OutputError
from clip_transforms.select.fence import ExpressionError
from clip_transforms.select.filtering import Filter
from pipelines import filter as filter_command

# Commands in this process; those in a process of their own, and the transforms, take Beam.
pytestmark = pytest.mark.usefixtures("without_beam")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write(tmp_path_factory.mktemp("made") / "out")


# Datasets as they are


def test_a_dataset_without_success_is_filtered_with_a_warning(tmp_path, caplog):
    out = write(tmp_path / "out")
    (tmp_path / "out" / "_SUCCESS").unlink()
    filter_embeddings(out, tmp_path / "kept", where="1 = 1")
    assert "has no _SUCCESS" in caplog.text and len(kept(tmp_path / "kept")) == 9


def test_two_fingerprints_are_refused(tmp_path):
    out = write(tmp_path / "out")
    write_rows(tmp_path / "other", [{"clip_score": [1.0]}], columns=["licence"])
    shutil.copy(tmp_path / "other" / "embeddings" / "part-00000.parquet", tmp_path / "out" / "embeddings" / "x.parquet")
    with pytest.raises(DatasetError, match="1 part made with other settings than the dataset has now, x among them"):
        filter_embeddings(out, tmp_path / "kept", where="1 = 1")
    assert not (tmp_path / "kept").exists()


def test_labels_that_are_missing_or_stale_are_refused_where_they_are_read(tmp_path):
    out = write(tmp_path / "out")
    labels = tmp_path / "out" / "labels" / "animals"
    shutil.copy(labels / "part-00001.parquet", labels / "part-00003.parquet")
    with pytest.raises(
        DatasetError, match="labels/animals made from other embeddings for 1 part, part-00003 among them; "
    ):
        filter_embeddings(out, tmp_path / "kept", where="animals.label = 'cat'")
    (labels / "part-00003.parquet").unlink()
    with pytest.raises(DatasetError, match="no labels/animals for 1 of 4 parts, part-00003 among them; python -m pip"):
        filter_embeddings(out, tmp_path / "kept", where="animals.label = 'cat'")
    (labels / "part-00000.parquet").unlink()
    with pytest.raises(DatasetError, match="no labels/animals for 2 of 4 parts, part-00000 among them; python -m pip"):
        filter_embeddings(out, tmp_path / "none", where="animals.label = 'cat'")
    assert filter_embeddings(out, tmp_path / "kept", where="clip_score > 0")["counts"]["kept"] == 7


def test_a_dataset_without_rows_gives_a_valid_empty_selection(tmp_path, capsys, without_beam):
    out = write_rows(tmp_path / "out", [{"clip_score": []}] * 2)
    argv = ["--input", out, "--output", str(tmp_path / "kept"), "--where", "clip_score > 0", "--top_fraction", "0.5"]
    assert filter_command.main(argv) == 0
    assert capsys.readouterr().out == f"0 rows = 0 kept, in {tmp_path}/kept\nnote: the selection is empty\n"
    assert kept(tmp_path / "kept") == [] and (tmp_path / "kept" / "_SUCCESS").exists()
    assert filter_embeddings(out, tmp_path / "again", selection=tmp_path / "kept")["counts"]["seen"] == 0


def test_captions_alone_have_no_score_and_null_is_not_true(tmp_path):
    out = write_rows(tmp_path / "out", [{"caption": ["a", "b"], "caption_embedding": np.eye(2, 4)}])
    record = filter_embeddings(out, tmp_path / "kept", top_fraction=0.5)
    assert record["counts"] == {"seen": 2, "kept": 0, "dropped": {}, "null": 2}
    record = filter_embeddings(out, tmp_path / "other", where="image_embedding is null and caption = 'a'")
    assert kept(tmp_path / "other") == [(0, 0)]


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_expressions_over_embeddings_read_them_and_null_embeddings_are_null(tmp_path, dtype):
    embeddings = [[1, 0, 0, 0], None, [0, 1, 0, 0], [0.6, 0.8, 0, 0]]
    out = write_rows(tmp_path / "out", [{"image_embedding": embeddings, "d": 4}] * 2, embedding_dtype=dtype)
    near = "array_inner_product(image_embedding, [1, 0, 0, 0]::FLOAT[4])"
    record = filter_embeddings(out, tmp_path / "kept", where=f"{near} > 0.5", by=near, top_count=3)
    assert kept(tmp_path / "kept") == [(0, 0), (0, 3), (1, 0)] and record["counts"]["null"] == 2


# Wrong input


@pytest.mark.parametrize(
    "flags, said",
    [
        ([], "nothing is asked for; give --where, --top_fraction, --top_count or --sample_fraction"),
        (["--by", "width"], "--by 'width' ranks rows, so it needs --top_fraction or --top_count"),
        (
            ["--top_fraction", "1.5"],
            "--top_fraction is 1.5, but it is a fraction of the rows and must lie in [0, 1]; for 1.5 %",
        ),
        (
            ["--seed", "3", "--top_count", "1"],
            "--seed is 3, but it is that of a sample; give --sample_fraction with it, or omit it",
        ),
        (["--top_fraction", "nan"], "--top_fraction is nan, but it is a fraction"),
        (["--sample_fraction", "-1"], "--sample_fraction is -1.0, but it is a fraction"),
        (["--top_count", "0"], "--top_count is 0, but it is a number of rows and must be 1 or more"),
        (["--top_count", "1", "--top_fraction", "0.5"], "are both given; give one of them"),
        (["--where", "clip_skore > 0"], "did you mean clip_score?"),
        (["--where", "animal.label = 'cat'"], "did you mean animals.label?"),
        (["--where", "(select 1 from '/etc/passwd') = 1"], "has a sub-select"),
        (["--wher", "1 = 1"], "did you mean --where?"),
        (["--top_count", "x"], "it must be a whole number; correct it, or omit the flag"),
    ],
)
def test_wrong_flags_are_one_sentence_and_write_nothing(dataset, tmp_path, flags, said):
    with pytest.raises(ValueError) as refusal:
        filter_command.main(["--input", dataset, "--output", str(tmp_path / "kept"), *flags])
    assert said in str(refusal.value) and "\n" not in str(refusal.value)
    assert not (tmp_path / "kept").exists()


def test_the_command_ends_with_2_and_one_sentence(dataset, tmp_path):
    done = command("pipelines.filter", "--input", dataset, "--output", tmp_path / "kept", "--where", "clip_skore > 0")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "error: --where names clip_skore, but the dataset has no such column; did you mean clip_score?\n"
    )


NUMBERS = [["1", "2"], ["3", "x", "-1"], []]


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """A dataset of captions that are numbers, but for one of the second part."""
    parts = [{"caption": of, "clip_score": [0.5] * len(of)} for of in [[], *NUMBERS]]
    return write_rows(tmp_path_factory.mktemp("texts") / "out", parts)


FAILS = (
    "--where 'caption::int > 0' fails on a row of part-00002: Conversion Error: Could not convert string 'x' to INT32"
)


def test_a_row_on_which_an_expression_fails_ends_the_run_without_a_false_promise(
    texts, tmp_path, capfd, without_beam, monkeypatch
):
    """It said that the same command would go on."""
    monkeypatch.setitem(FilterEmbeddings.begin.__globals__, "_GROUP_ROWS", 100)  # both parts are evaluated at once
    argv = ["--input", texts, "--output", str(tmp_path / "kept"), "--where", "caption::int > 0"]
    assert filter_command.main(argv) == 1
    said = capfd.readouterr().err
    assert said.startswith(f"the run failed: {FAILS}") and said.count("\n") == 1
    cure = "correct the expression; try_cast gives null where a cast fails, and --overwrite replaces an output that has"
    assert said.endswith(f"{cure} begun\n") and "goes on" not in said
    argv[-1] = "try_cast(caption as int) > 0"
    assert filter_command.main([*argv, "--overwrite"]) == 0
    assert kept(tmp_path / "kept") == [(1, 0), (1, 1), (2, 0)]


@pytest.mark.parametrize("sql", ["caption::int > 0", "clip_score > 0 and caption::timestamp is null"])
def test_an_expression_that_fails_on_the_first_rows_is_refused_before_anything_is_written(tmp_path, sql):
    out = write_rows(tmp_path / "out", [{"caption": [], "clip_score": []}, {"caption": ["x"], "clip_score": [1]}])
    with pytest.raises(
        ExpressionError, match="fails on a row of part-00001: Conversion Error: .*; correct the expr"
    ) as r:
        filter_command.main(["--input", out, "--output", str(tmp_path / "kept"), "--where", sql])
    assert "--overwrite" not in str(r.value) and not (tmp_path / "kept").exists()


def test_rows_that_an_earlier_condition_dropped_cannot_make_an_expression_fail(texts, tmp_path):
    where = {"where": "try_cast(caption as int) is not null"}
    numbers = select(texts, tmp_path, "numbers", **where)
    assert kept(select(texts, tmp_path, "best", by="caption::int", top_count=2, **where)) == [(1, 1), (2, 0)]
    assert kept(select(texts, tmp_path, "large", selection=numbers, where="caption::int > 1")) == [(1, 1), (2, 0)]
    write_csv(tmp_path / "first.csv", [("/shards/2.tar", 0)])
    assert kept(select(texts, tmp_path, "one", selection=tmp_path / "first.csv", where="caption::int > 1")) == [(2, 0)]
    with pytest.raises(ExpressionError, match="fails on a row of part-00002"):
        select(texts, tmp_path, "all", where="caption::int > 1")


@pytest.mark.parametrize(
    "argv, said",
    [
        (["--output", "k", "--where", "1 = 1"], "--input is missing"),
        (["--input", "{dataset}", "--where", "1 = 1"], "--output is missing"),
        (["--input", "/nowhere", "--output", "k", "--where", "1 = 1"], "is not a dataset of this program"),
    ],
)
def test_a_missing_place_is_one_sentence(dataset, argv, said):
    with pytest.raises(ValueError, match=said):
        filter_command.main([part.format(dataset=dataset) for part in argv])


@pytest.mark.parametrize(
    "conditions, said",
    [
        ({"where": 3}, "where is an int"),
        ({"top_fraction": "0.3"}, "top_fraction is a str"),
        ({"top_count": 1.5}, "top_count is a float"),
        ({"seed": "a", "sample_fraction": 0.5}, "seed is a str"),
        ({"wher": "1 = 1"}, "wher"),
    ],
)
def test_wrong_types_are_named(dataset, conditions, said):
    with pytest.raises((ValueError, TypeError), match=said):
        Filter.of(Dataset.open(dataset), **conditions)


@pytest.mark.parametrize(
    "flags, line",
    [
        (["--top_count", "50"], "note: --top_count 50 is more than there are; every row"),
        (
            ["--top_fraction", "1"],
            "note: --top_fraction 1.0 reaches into the 2 rows without a value of clip_score; every row",
        ),
    ],
)
def test_more_than_there_is_keeps_everything_with_a_value_and_says_so(
    dataset, tmp_path, capsys, without_beam, flags, line
):
    assert filter_command.main(["--input", dataset, "--output", str(tmp_path / "kept"), *flags]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"{line} with a value stays"
    assert len(kept(tmp_path / "kept")) == 7


@pytest.mark.parametrize("name", ["clip_score", "Caption", "licence"])
def test_a_taxonomy_named_like_a_column_is_refused(embed, tmp_path, name):
    """In SQL it would stand for the column's name too."""
    make_tar(tmp_path / "a.tar", 2)
    embed(tmp_path / "a.tar", output=tmp_path / "out", flags=["--columns", "licence"])
    (tmp_path / f"{name}.txt").write_text("cat\ndog\n")
    said = f"--taxonomy {name} has the name of a column of the dataset; rename the file"
    with pytest.raises(ValueError, match=said):
        label_embeddings(tmp_path / "out", tmp_path / f"{name}.txt")
    with pytest.raises(ValueError, match=said):
        embed(
            tmp_path / "a.tar",
            output=tmp_path / "new",
            flags=["--columns", "licence", "--taxonomy", tmp_path / f"{name}.txt"],
        )
    assert not (tmp_path / "new").exists()


def test_an_output_in_an_embedded_folder_is_refused(embed, tmp_path):
    make_folder(tmp_path / "photos", 2)
    embed(tmp_path / "photos", output=tmp_path / "out")
    with pytest.raises(OutputError, match="kept lies in .*/photos, which was embedded; give a folder outside of it"):
        filter_embeddings(tmp_path / "out", tmp_path / "photos" / "kept", where="1 = 1")
