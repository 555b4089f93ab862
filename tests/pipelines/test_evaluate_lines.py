"""What evaluate prints, and what it refuses."""

from pathlib import Path

import numpy as np
import pytest
from evaluated import ALL, ASKED, made_dataset, made_reference, made_trained, one, with_one_thread, write, write_classes  # noqa: F401
from filtered import files

from benchmarks.datasets import write_rows
from clip_transforms import evaluate_embeddings, filter_embeddings
from clip_transforms.clip.taxonomy import TaxonomyError
from clip_transforms.parts.manifest import OutputError
from pipelines import evaluate

# Commands in this process; those in a process of their own, and the transforms, take Beam.
pytestmark = pytest.mark.usefixtures("without_beam", "one_thread")


PRINTED = """evaluated in {e} (metrics.json, per_class.parquet, per_group.parquet)

zero-shot labels: 8 rows = 5 scored + 1 without an image embedding + 1 without a truth + 1 of an unknown class
  taxonomy  classes   top 1     95 % interval    top 5  mean recall
  animals         5  60.0 %  23.1 % to 88.2 %  100.0 %       66.7 %
note: classes of the truth that a taxonomy lacks, and that are not scored: 'zebra' (1)

warning: where these are groups of people, CLIP's accuracies differ between them, and the choice of classes moves
the differences. Its authors rule out surveillance, the recognition of faces, and any use that was not tested in
its own context; read docs/model-card.md before you rely on a number below.

zero-shot labels of animals, by who, with 95 % intervals:
  who     n               top 1                 top 5  mean recall
  a       3  66.7 % (20.8–93.9)  100.0 % (43.9–100.0)       66.7 %
  b       2   50.0 % (9.5–90.5)  100.0 % (34.2–100.0)       50.0 %
  spread                   16.7                   0.0         16.7

how often a group gets each label of animals, by who:
  who     n     cat     dog     fox    owl    pig
  a       3  66.7 %  33.3 %   0.0 %  0.0 %  0.0 %
  b       3   0.0 %  33.3 %  66.7 %  0.0 %  0.0 %
  spread       66.7     0.0    66.7    0.0    0.0
note: 1 row without a who, in no group
"""


def test_tables_are_printed_that_a_person_can_read(dataset, tmp_path, capsys, without_beam):
    argv = ["--input", dataset, "--output", str(tmp_path / "e"), "--truth_column", "animal", "--group_column", "who"]
    assert evaluate.main(argv) == 0
    printed = capsys.readouterr().out
    assert printed == PRINTED.format(e=tmp_path / "e")
    assert max(map(len, printed.replace(str(tmp_path), "").splitlines())) <= 120
    assert evaluate.main(argv) == 0 and capsys.readouterr().out == f"{printed}nothing was left to do\n"
    (tmp_path / "e" / "per_class.parquet").unlink()
    assert evaluate.main(argv) == 0 and capsys.readouterr().out == printed


def test_tables_stay_narrow_with_many_classes_and_groups_and_control_no_terminal(tmp_path, capsys, without_beam):
    names, weights = [f"a class whose number is {i}" for i in range(30)], np.eye(30, dtype=np.float32)
    groups = ["b\x1b[31mred", "", "x" * 60, *map(str, range(17))] * 6
    parts = [{"image_embedding": weights[np.arange(120) % 29], "cls": [i % 29 for i in range(120)], "who": groups}]
    out = write_rows(tmp_path / "out", parts, columns=["cls:int32", "who"])
    write_classes(out, "many", names, weights)
    assert evaluate.main(["--input", out, "--output", str(tmp_path / "e"), "--group_column", "who"]) == 0
    lines = capsys.readouterr().out.replace(str(tmp_path), "").splitlines()
    assert max(map(len, lines)) <= 120 and all(line.isprintable() for line in lines)
    (title,) = [line for line in lines if line.startswith("how often")]
    assert title == "how often a group gets each label of many, by who, the 4 of 30 that differ most:"
    first = [line.split()[0] for line in lines[lines.index(title) + 2 :]]
    assert first == ['""', "b\\x1b[31mred", "x" * 23 + "…", *map(str, range(9)), "spread", "note:"]
    assert lines[-1] == "note: 8 smaller groups in per_group.parquet; the spread is over all"


# What is refused


def test_another_command_over_an_output_is_refused_and_overwrite_replaces_it(dataset, reference, tmp_path):
    evaluate_embeddings(dataset, tmp_path / "e", truth_column="animal")
    with pytest.raises(OutputError, match="made by another command: .*group_column was not given, now 'who'"):
        evaluate_embeddings(dataset, tmp_path / "e", **ASKED)
    evaluate_embeddings(dataset, tmp_path / "e", overwrite=True, **ALL)
    assert files(tmp_path / "e") == reference


@pytest.mark.parametrize(
    "asked, said",
    [
        ({"measure": "zeroshot"}, "--measure zeroshot needs the right classes; give --truth_column NAME, or --truth"),
        ({"measure": "probe"}, "--measure probe needs the right classes"),
        ({"measure": "zero"}, "--measure is 'zero', but it must be one or more of zeroshot, retrieval, probe"),
        ({"truth_column": "animals"}, "--truth_column is 'animals', which .* does not have; its columns are key, "),
        ({"group_column": "image_embedding"}, "--group_column is 'image_embedding', which .* does not have"),
        ({"truth_column": "animal", "truth": "x.csv"}, "--truth and --truth_column are both given; give one of them"),
        ({"truth": "/nowhere.csv"}, "--truth /nowhere.csv does not exist"),
        ({"truth": "/x.json"}, "--truth /x.json must be a .parquet or .csv file"),
        (
            {"truth_column": "animal", "taxonomy": "plants"},
            "--taxonomy plants is neither a file nor a taxonomy of .*: its taxonomies are animals",
        ),
        ({"truth_column": "animal", "taxonomy": ["animals", "animals"]}, "--taxonomy animals is given 2 times"),
        (
            {"truth_column": "who"},
            "--truth_column who holds 'a', which is no class of taxonomy animals, nor is any other value",
        ),
        ({"truth_column": "animal", "seed": 1}, "--seed is for --measure probe; omit it, or add probe"),
        (
            {"measure": "probe", "truth_column": "animal", "test_fraction": 1.5},
            "--test_fraction is 1.5, but .* must lie in",
        ),
        (
            {"measure": "retrieval", "truth_column": "animal"},
            "--truth_column is for --measure zeroshot and probe; omit it",
        ),
        ({"measure": "retrieval", "taxonomy": "animals"}, "--taxonomy is for --measure zeroshot and probe; omit it"),
        (
            {"measure": "probe", "truth_column": "animal", "split_column": "who", "test": "x"},
            "--split_column and --test are given; give one of them",
        ),
        (
            {"measure": "probe", "truth_column": "animal", "split_column": "who"},
            "--split_column who holds 'a', but it must say train, val or test",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_what_cannot_be_measured_is_one_sentence(dataset, tmp_path, asked, said):
    with pytest.raises(ValueError, match=said) as refusal:
        evaluate_embeddings(dataset, tmp_path / "e", **asked)
    assert "\n" not in str(refusal.value) and not (tmp_path / "e").exists()


def test_test_rows_are_refused_by_the_name_of_their_flag(trained, tmp_path):
    asked = {"measure": "probe", "truth_column": "animal"}
    with pytest.raises(ValueError, match="--test /nowhere does not exist"):
        evaluate_embeddings(trained, tmp_path / "e", test="/nowhere", **asked)
    filter_embeddings(trained, tmp_path / "s", where="split = 'Test'")
    with pytest.raises(OutputError, match="--output .* and --test .* lie in each other"):
        evaluate_embeddings(trained, tmp_path / "s", test=tmp_path / "s", overwrite=True, **asked)
    assert (tmp_path / "s" / "selection.json").exists()


def test_a_taxonomy_must_be_named_where_there_are_several_or_none(tmp_path):
    out = write(tmp_path / "out")
    write_classes(out, "others")
    with pytest.raises(TaxonomyError, match="--taxonomy is missing, and .* has several: animals, others; name one"):
        evaluate_embeddings(out, tmp_path / "e", truth_column="animal")
    bare = write_rows(tmp_path / "bare", [{"image_embedding": one(0), "animal": ["cat"], "d": 5}], columns=["animal"])
    with pytest.raises(TaxonomyError, match="--taxonomy is missing, and .* has none; give a file"):
        evaluate_embeddings(bare, tmp_path / "e", truth_column="animal")
    (Path(out) / "taxonomies" / "others.parquet").unlink()
    with pytest.raises(
        TaxonomyError, match="others.parquet is gone or of other classes; give the file of the taxonomy"
    ):
        evaluate_embeddings(out, tmp_path / "e", truth_column="animal", taxonomy="others")


def test_too_many_groups_are_refused(tmp_path):
    parts = [{"image_embedding": one(*[0] * 250), "who": [str(i) for i in range(250)], "d": 5}]
    out = write_rows(tmp_path / "out", parts, columns=["who"])
    write_classes(out, "animals")
    with pytest.raises(
        ValueError, match="--group_column who has 250 different values in one part alone, but 200 groups"
    ):
        evaluate_embeddings(out, tmp_path / "e", group_column="who")
