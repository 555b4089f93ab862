"""Labels apart from embeddings: from what is stored, without opening an image or loading the vision tower."""

import json
import os

import apache_beam as beam
import pytest
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from conftest import ROOT, files_of, make_tar, rows_of, write_tar
from forked import run

from clip_transforms import LabelEmbeddings, Taxonomy
from pipelines import label


@pytest.fixture
def dataset(embed, tmp_path, taxonomy_file):
    for name in ("a", "b"):
        make_tar(tmp_path / f"{name}.tar", 4)
    embed(tmp_path / "*.tar", output=tmp_path / "out", flags=["--taxonomy", taxonomy_file])
    return tmp_path / "out"


@pytest.fixture
def again(embed, dataset, tmp_path):
    """The command once more, with other taxonomies; no image may be opened."""

    def run(*taxonomies, flags=(), code=0):
        flags = [part for taxonomy in taxonomies for part in ("--taxonomy", taxonomy)] + list(flags)
        return embed(tmp_path / "*.tar", output=dataset, flags=flags, code=code)

    return run


def write(path, *classes):
    path.write_text("\n".join(classes))
    return str(path)


def modified(dataset):
    return {path: os.stat(path).st_mtime_ns for path in dataset.rglob("*.parquet")}


def test_a_taxonomy_added_later_equals_one_from_the_beginning(again, dataset, tmp_path, taxonomy_file, embed, capsys):
    new = write(tmp_path / "colors.txt", "red", "blue")
    before = modified(dataset)
    assert again(taxonomy_file, new) == 0
    assert "0 units committed, 2 skipped, 2 of them labelled" in capsys.readouterr().out
    after = modified(dataset)
    assert before and after | before == after, "embeddings and other labels stay as they are"
    fresh = tmp_path / "fresh"
    embed(tmp_path / "*.tar", output=fresh, flags=["--taxonomy", new])
    labels = rows_of(dataset, "labels/colors")
    assert len(labels) == 8
    for ours, theirs in zip(labels, rows_of(fresh, "labels/colors"), strict=True):
        assert (ours["key"], ours["shard"], ours["row"], ours["label"]) == (
            theirs["key"],
            theirs["shard"],
            theirs["row"],
            theirs["label"],
        )
        assert ours["probability"] == pytest.approx(theirs["probability"], abs=1e-5)
    assert (dataset / "_SUCCESS").exists()


def test_neither_an_image_nor_the_vision_tower_is_touched(dataset, tmp_path, tiny_checkpoint):
    new = write(tmp_path / "colors.txt", "red", "blue")
    code = (
        "import sys\n"
        "from clip_transforms.clip import checkpoints\n"
        "original = checkpoints.load_checkpoint\n"
        "def watched(*args, **kwargs):\n"
        "    assert kwargs == {'vision': False}, kwargs\n"
        "    return original(*args, **kwargs)\n"
        "checkpoints.load_checkpoint = watched\n"
        "sys.addaudithook(lambda event, args: sys.exit('opened ' + str(args[0])) if event == 'open' "
        "and str(args[0]).endswith('.tar') else None)\n"
        "from pipelines import embed\n"
        "print('code', embed.main(sys.argv[1:]))\n"
    )
    argv = ["--input", tmp_path / "*.tar", "--output", dataset, "--taxonomy", new]
    argv += ["--model", tiny_checkpoint, "--precision=fp32"]
    done = run("-c", code, *map(str, argv), cwd=ROOT, timeout=60)
    assert done.stdout.splitlines()[-1] == "code 0", done.stderr
    assert "2 of them labelled" in done.stdout


@pytest.mark.parametrize("damage", ["delete", "truncate", "another unit's", "another top"])
def test_labels_that_are_lost_or_stale_are_made_again(damage, again, dataset, taxonomy_file):
    before = files_of(dataset)
    first, second = sorted((dataset / "labels" / "animals").glob("*.parquet"))
    flags = ["--top_labels", 2] if damage == "another top" else []
    if damage == "delete":
        first.unlink()
    elif damage == "truncate":
        first.write_bytes(first.read_bytes()[:100])
    elif damage == "another unit's":
        first.write_bytes(second.read_bytes())
    assert again(taxonomy_file, flags=flags) == 0
    if damage == "another top":
        assert {len(row["top"]) for row in rows_of(dataset, "labels/animals")} == {2}
    else:
        rows = rows_of(dataset, "labels/animals")
        assert [row["row"] for row in rows] == [0, 1, 2, 3] * 2 and len({row["shard"] for row in rows}) == 2
        assert files_of(dataset).keys() == before.keys()


def test_class_embeddings_are_made_once(again, dataset, tmp_path, taxonomy_file):
    stored = dataset / "taxonomies" / "animals.parquet"
    before = os.stat(stored).st_mtime_ns
    next((dataset / "labels" / "animals").glob("*.parquet")).unlink()
    assert again(taxonomy_file) == 0
    assert os.stat(stored).st_mtime_ns == before


def test_other_classes_under_the_same_name_are_refused_without_overwrite(again, dataset, tmp_path, taxonomy_file):
    content = json.loads(open(taxonomy_file).read())
    content["classes"].append("cow")
    open(taxonomy_file, "w").write(json.dumps(content))
    before = files_of(dataset)
    with pytest.raises(ValueError, match="--taxonomy animals has other classes.*--overwrite"):
        again(taxonomy_file)
    assert files_of(dataset) == before
    embeddings = {name: data for name, data in before.items() if not name.startswith("labels")}
    assert again(taxonomy_file, flags=["--overwrite"]) == 0
    assert {len(row["top"]) for row in rows_of(dataset, "labels/animals")} == {4}
    after = files_of(dataset)
    assert len(embeddings) == 4 and after | embeddings == after


def test_the_label_command_does_it_alone(dataset, tmp_path, capsys):
    new = write(tmp_path / "colors.txt", "red", "blue", "green")
    assert label.main(["--input", str(dataset), "--taxonomy", new]) == 0
    assert "2 parts labelled, 0 skipped" in capsys.readouterr().out
    assert len(rows_of(dataset, "labels/colors")) == 8
    assert not (dataset / "_temporary").exists() and (dataset / "_SUCCESS").exists()
    assert label.main(["--input", str(dataset), "--taxonomy", new]) == 0
    assert "nothing was left to do" in capsys.readouterr().out


def test_the_label_command_takes_a_checkpoint_that_was_moved_but_no_other(dataset, tmp_path, tiny_checkpoint):
    new = write(tmp_path / "colors.txt", "red", "blue")
    made = dataset / "_dataset.json"
    made.write_text(made.read_text().replace(tiny_checkpoint, "/nowhere/tiny.safetensors"))
    with pytest.raises(ValueError, match="/nowhere/tiny.safetensors"):
        label.main(["--input", str(dataset), "--taxonomy", new])
    said = (
        f"--model demo is given, but {dataset} was made with --model /nowhere/tiny.safetensors: .*give the checkpoint"
    )
    with pytest.raises(ValueError, match=said):
        label.main(["--input", str(dataset), "--taxonomy", new, "--model", "demo"])
    assert label.main(["--input", str(dataset), "--taxonomy", new, "--model", tiny_checkpoint]) == 0


def test_a_dry_run_says_what_would_be_labelled_and_writes_nothing(dataset, tmp_path, capsys):
    new, old = write(tmp_path / "colors.txt", "red", "blue"), str(tmp_path / "animals.json")
    before = sorted((path, path.stat().st_mtime_ns) for path in dataset.rglob("*"))
    next((dataset / "labels" / "animals").glob("b-*")).unlink()
    before = sorted((path, path.stat().st_mtime_ns) for path in dataset.rglob("*"))
    argv = ["--input", str(dataset), "--taxonomy"]
    assert label.main([*argv, new, old, "--dry_run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "2 parts: 2 to label, 0 done" and len(lines) == 4
    assert lines[1].endswith("  with colors") and lines[2].endswith("  with colors, animals")
    assert lines[3] == f"dataset {dataset}; taxonomies: colors, animals; nothing was written (--dry_run)"
    assert label.main([*argv, old, "--dry_run"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "2 parts: 1 to label, 1 done"
    assert sorted((path, path.stat().st_mtime_ns) for path in dataset.rglob("*")) == before
    assert label.main([*argv, new, old]) == 0
    assert "2 parts labelled, 0 skipped" in capsys.readouterr().out
    assert label.main([*argv, new, "--dry_run"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "2 parts: 0 to label, 2 done"


def test_several_taxonomies_stand_behind_one_flag_or_behind_several(again, dataset, tmp_path, taxonomy_file):
    names = [write(tmp_path / f"{name}.txt", "red", "blue") for name in ("one", "two", "three")]
    again(flags=["--taxonomy", taxonomy_file, names[0], "--taxonomy", names[1]])
    assert sorted(path.name for path in (dataset / "labels").iterdir()) == ["animals", "one", "two"]
    assert label.main(["--input", str(dataset), "--taxonomy", *names]) == 0
    assert len(rows_of(dataset, "labels/three")) == 8


@pytest.mark.parametrize(
    "argv, sentence",
    [
        ([], "--input is missing"),
        (["--input", "{out}"], "--taxonomy is missing"),
        (["--input", "{tmp}/nothing", "--taxonomy", "{new}"], "is not a dataset of this program"),
        (["--input", "{out}", "--taxonomy", "{new}", "--top_labels", "0"], "--top_labels is 0"),
        (["--input", "{out}", "--taxonomy", "{new}", "--overwrit"], "did you mean --overwrite"),
    ],
    ids=["no input", "no taxonomy", "no dataset", "no labels", "misspelt"],
)
def test_a_wrong_label_command_is_one_sentence(argv, sentence, dataset, tmp_path):
    places = {"out": dataset, "tmp": tmp_path, "new": write(tmp_path / "colors.txt", "red", "blue")}
    with pytest.raises(ValueError, match=sentence):
        label.main([part.format(**places) for part in argv])


def test_the_transform_yields_parts_and_rows(dataset, tmp_path):
    new = Taxonomy.load(write(tmp_path / "colors.txt", "red", "blue"))
    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        labelled = pipeline | LabelEmbeddings(str(dataset), [new])
        _ = labelled | beam.Map(lambda result: open(tmp_path / "seen", "a").write(f"{result[1]}\n"))
    assert (tmp_path / "seen").read_text() == "4\n4\n"


def test_labels_of_a_taxonomy_that_is_not_asked_for_go_with_the_embeddings_they_were_made_from(
    again, dataset, tmp_path, taxonomy_file, capsys
):
    make_tar(tmp_path / "a.tar", 3, first=30)  # changed: other samples at the same rows
    assert again() == 0
    said = capsys.readouterr().out
    assert "warning: 1 part will be made anew, and its labels/animals are deleted with the old embeddings" in said
    assert "warning: labels/animals lacks 1 part" in said and "python -m pipelines.label" in said
    assert {row["shard"] for row in rows_of(dataset, "labels/animals")} == {str(tmp_path / "b.tar")}
    assert label.main(["--input", str(dataset), "--taxonomy", taxonomy_file]) == 0
    assert len(rows_of(dataset, "labels/animals")) == 7


def test_half_a_dataset_is_not_labelled_with_other_classes(embed, dataset, tmp_path, taxonomy_file):
    content = json.loads(open(taxonomy_file).read())
    content["classes"].append("cow")
    open(taxonomy_file, "w").write(json.dumps(content))
    with pytest.raises(ValueError, match="of other classes for 1 part outside --input"):
        embed(tmp_path / "a.tar", output=dataset, flags=["--taxonomy", taxonomy_file, "--overwrite"])
    assert label.main(["--input", str(dataset), "--taxonomy", taxonomy_file, "--overwrite"]) == 0
    assert {len(row["top"]) for row in rows_of(dataset, "labels/animals")} == {4}


def test_changed_classes_are_refused_also_when_the_file_of_their_embeddings_is_gone(again, dataset, taxonomy_file):
    (dataset / "taxonomies" / "animals.parquet").unlink()
    assert again(taxonomy_file) == 0
    open(taxonomy_file, "w").write('{"classes": ["other"]}')
    (dataset / "taxonomies" / "animals.parquet").unlink(missing_ok=True)
    with pytest.raises(ValueError, match="has other classes"):
        again(taxonomy_file)


def test_labels_of_two_sets_of_classes_are_not_read_as_one(dataset, tmp_path, taxonomy_file, embed):
    from clip_transforms.read_embeddings import read_embeddings

    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "animals.json").write_text('{"classes": ["x", "y"]}')
    fresh = tmp_path / "fresh"
    embed(tmp_path / "*.tar", output=fresh, flags=["--taxonomy", tmp_path / "other" / "animals.json"])
    first = next((fresh / "labels" / "animals").glob("a-*"))
    (dataset / "labels" / "animals" / first.name).write_bytes(first.read_bytes())
    with pytest.raises(ValueError, match="of different classes"):
        list(read_embeddings(str(dataset), labels=["animals"]))


def test_captions_alone_are_labelled_with_nulls(embed, tmp_path, taxonomy_file):
    """A batch without any picture: every label column is null, by `embed` and by `label`."""
    tar, out = write_tar(tmp_path / "words.tar", [("a.txt", b"words"), ("b.txt", b"more")]), tmp_path / "words"
    embed(tar, output=out, flags=["--taxonomy", taxonomy_file])
    made = rows_of(out, "labels/animals")
    assert [row["key"] for row in made] == ["a", "b"]
    assert {row[name] for row in made for name in ("label", "probability", "similarity", "margin", "top")} == {None}
    next((out / "labels" / "animals").glob("*.parquet")).unlink()
    assert label.main(["--input", str(out), "--taxonomy", taxonomy_file]) == 0
    assert rows_of(out, "labels/animals") == made


def test_the_graph_does_not_grow_with_the_parts(dataset, taxonomy_file):
    import dataclasses

    import apache_beam as beam

    from clip_transforms import LabelEmbeddings
    from clip_transforms.clip.taxonomy import Taxonomy
    from clip_transforms.labels.plan import plan_labels

    plan = plan_labels(str(dataset), [Taxonomy.load(taxonomy_file)])
    many = {f"part-{i:012d}": ["animals"] for i in range(20_000)}
    transform = LabelEmbeddings.of(dataclasses.replace(plan, stale=many))
    pipeline = beam.Pipeline()
    _ = pipeline | transform
    transform.run_folder.close()
    assert len(pipeline.to_runner_api().SerializeToString()) < 200_000
