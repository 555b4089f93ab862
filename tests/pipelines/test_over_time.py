"""A dataset over time: sources that come, change and go, runs that add and replace."""

import importlib
import json
import os

import pytest
from conftest import files_of, make_folder, make_parquet, make_tar, picture, rows_of, write_tar

from clip_transforms.shards import cut


def run_of(out):
    return json.loads((out / "run.json").read_text())


def units_of(out):
    """(committed, skipped) of the last run."""
    return run_of(out)["units"]["committed"], run_of(out)["units"]["skipped"]


def keys_of(out, shard=""):
    return [row["key"] for row in rows_of(out) if shard in row["shard"]]


def assert_same_as_new(embed, out, *inputs, flags=()):
    """What grew over time is what one run makes at once."""
    new = out.parent / "at-once"
    assert embed(*inputs, output=new, flags=flags, code=None) in (0, 3)
    assert files_of(out) == files_of(new)
    assert run_of(out)["dataset"] == run_of(new)["dataset"]


CHANGES = {
    "changed": lambda path: make_tar(path, 5, first=40),
    "shrunk": lambda path: make_tar(path, 2),
    "grown": lambda path: make_tar(path, 7),
    "emptied": lambda path: write_tar(path, []),
    "touched": lambda path: os.utime(path, (1, 1)),
}


def test_only_the_sources_that_changed_are_done_again(embed, tmp_path):
    out, pattern = tmp_path / "out", tmp_path / "*.tar"
    make_tar(tmp_path / "same.tar", 5, first=80)
    for i, change in enumerate(CHANGES):
        make_tar(tmp_path / f"{change}.tar", 5, first=10 * i)
    embed(pattern, output=out)
    for change, make in CHANGES.items():
        make(tmp_path / f"{change}.tar")
    embed(pattern, output=out)
    assert units_of(out) == (len(CHANGES), 1)
    assert_same_as_new(embed, out, pattern)


def test_what_vanished_stays_in_the_dataset_and_out_of_the_run(embed, tmp_path):
    out = tmp_path / "out"
    embed(make_tar(tmp_path / "a.tar", 5), make_tar(tmp_path / "b.tar", 3, first=20), output=out)
    before = files_of(out)
    (tmp_path / "b.tar").unlink()
    embed(tmp_path / "*.tar", output=out)
    assert units_of(out) == (0, 1) and files_of(out) == before
    run = run_of(out)
    assert (run["input"]["samples"], run["dataset"]["samples"], run["dataset"]["parts"]) == (5, 8, 2)
    with pytest.raises(ValueError, match="b.tar matches nothing"):
        embed(tmp_path / "b.tar", output=out)


def test_a_source_that_vanishes_while_the_run_goes_is_a_reject_and_its_next_run_mends_it(embed, tmp_path, monkeypatch):
    embed_shards = importlib.import_module("clip_transforms.embed_shards")

    out, b = tmp_path / "out", tmp_path / "b.tar"
    make_tar(tmp_path / "a.tar", 2), make_tar(b, 3, first=20)
    begin = embed_shards.begin_run
    with monkeypatch.context() as patch:
        patch.setattr(embed_shards, "begin_run", lambda *args: b.rename(tmp_path / "x") and begin(*args))
        embed(tmp_path / "a.tar", b, output=out, code=3)
    (reject,) = rows_of(out, "rejects")
    assert (reject["modality"], reject["reason"]) == ("shard", "vanished")
    (tmp_path / "x").rename(b)
    embed(tmp_path / "a.tar", b, output=out)
    assert units_of(out) == (1, 1)
    assert_same_as_new(embed, out, tmp_path / "a.tar", b)


def test_a_renamed_source_is_a_new_one_with_a_warning(embed, tmp_path, capsys):
    out = tmp_path / "out"
    embed(make_tar(tmp_path / "a.tar", 3), output=out)
    (tmp_path / "moved").mkdir()
    (tmp_path / "a.tar").rename(tmp_path / "moved" / "a.tar")
    embed(tmp_path / "moved" / "a.tar", output=out)
    assert "its rows will be in the dataset twice" in capsys.readouterr().out
    assert units_of(out) == (1, 0) and len(rows_of(out)) == 6
    assert len({(row["shard"], row["row"]) for row in rows_of(out)}) == 6


@pytest.mark.parametrize("kind", ["tar", "folder", "folder within"])
def test_a_number_sign_in_a_name_makes_no_two_sources_one(kind, embed, tmp_path, capsys):
    first, second = {
        "tar": ("cats#1.tar", "cats#2.tar"),
        "folder": ("cats#1", "cats#2"),
        "folder within": ("cats#1", "cats"),
    }[kind]
    make = make_tar if kind == "tar" else make_folder
    make(tmp_path / first, 3), make(tmp_path / second, 3, first=3)
    out = tmp_path / "out"
    embed(tmp_path / first, output=out)
    embed(tmp_path / second, output=out)
    assert len(rows_of(out)) == 6 and "in the dataset twice" not in capsys.readouterr().out
    assert_same_as_new(embed, out, tmp_path / first, tmp_path / second)


def test_a_number_sign_in_a_pictures_name_keeps_it_in_its_folder(embed, tmp_path, small_cuts):
    photos, out = tmp_path / "pho#tos", tmp_path / "out"
    photos.mkdir()
    for i in range(24):
        (photos / f"{i}#{i}.jpg").write_bytes(picture(i))
    embed(photos, output=out)
    assert sum(units_of(out)) > 3
    for i in range(0, 24, 2):
        (photos / f"{i}#{i}.jpg").unlink()
    embed(photos, output=out)
    assert_same_as_new(embed, out, photos)


@pytest.fixture
def small_cuts(monkeypatch):
    monkeypatch.setattr(cut, "FOLDER_CUT_MODULUS", 4)
    monkeypatch.setattr(cut, "MAX_FOLDER_UNIT", 16)


def test_pictures_added_to_a_folder_are_done_with_their_unit_alone(embed, tmp_path, small_cuts):
    photos, out = tmp_path / "photos", tmp_path / "out"
    make_folder(photos, 24)
    embed(photos, output=out)
    before, units = files_of(out), sum(units_of(out))
    assert units > 3
    (photos / "000017b.jpg").write_bytes(picture(500))
    embed(photos, output=out)
    assert units_of(out)[0] in (1, 2)  # 2 where the new picture is itself a cut
    changed = {name for name, data in files_of(out).items() if before.get(name) != data}
    assert len(changed) in (2, 4) and len(keys_of(out)) == 25
    assert_same_as_new(embed, out, photos)


def test_pictures_removed_from_a_folder_leave_no_row(embed, tmp_path, small_cuts):
    photos, out = tmp_path / "photos", tmp_path / "out"
    make_folder(photos, 24)
    embed(photos, output=out)
    gone = {f"{place:06d}.jpg" for place in (0, 12, 23)}  # first, middle and last
    for name in gone:
        (photos / name).unlink()
    embed(photos, output=out)
    assert not gone & set(keys_of(out)) and len(keys_of(out)) == 21
    assert units_of(out)[0] <= 4 and units_of(out)[1] >= 1
    assert_same_as_new(embed, out, photos)


def test_a_caption_that_changes_is_done_with_its_unit_alone(embed, tmp_path, small_cuts):
    photos, out = tmp_path / "photos", tmp_path / "out"
    make_folder(photos, 24)
    embed(photos, output=out)
    (photos / "000020.txt").write_text("something else altogether")
    embed(photos, output=out)
    assert units_of(out)[0] == 1
    assert_same_as_new(embed, out, photos)


def test_inputs_added_in_later_runs_are_one_dataset(embed, tmp_path, small_cuts):
    out = tmp_path / "out"
    make_tar(tmp_path / "a.tar", 3)
    make_parquet(tmp_path / "p.parquet", 9, first=20)
    make_folder(tmp_path / "photos", 12, first=50)
    inputs = [tmp_path / "a.tar", tmp_path / "p.parquet", tmp_path / "photos"]
    for i in range(3):
        embed(*inputs[: i + 1], output=out)
        assert units_of(out)[0] > 0 and (i == 0 or units_of(out)[1] > 0)
    assert_same_as_new(embed, out, *inputs)
    embed(inputs[1], output=out)
    assert units_of(out) == (0, 1) and run_of(out)["dataset"]["samples"] == 24


@pytest.mark.parametrize("groups", [1, 9], ids=lambda n: f"{n} rows a group")
def test_a_parquet_file_cut_anew_is_replaced_whole(groups, embed, tmp_path, monkeypatch, taxonomy_file):
    monkeypatch.setattr(cut, "ROWS_PER_PARQUET_UNIT", 4)
    path, out, flags = tmp_path / "p.parquet", tmp_path / "out", ["--taxonomy", taxonomy_file]
    embed(make_parquet(path, 9, row_group_size=2), output=out, flags=flags)
    assert sum(units_of(out)) == 3
    make_parquet(path, 9, row_group_size=groups)
    embed(path, output=out, flags=flags)
    assert [row["row"] for row in rows_of(out)] == list(range(9))
    assert_same_as_new(embed, out, path, flags=flags)


# Replacing


def test_an_overwrite_that_was_killed_goes_on_with_what_is_left(embed, tmp_path, monkeypatch):
    from clip_transforms.parts import writer

    inputs = [make_tar(tmp_path / f"{i}.tar", 4, first=10 * i) for i in range(4)]
    out, flags = tmp_path / "out", ["--embedding_dtype", "float16", "--overwrite"]
    embed(*inputs, output=out)
    commit, done = writer.UnitWriter.commit, []

    def dying(self, *args):
        if len(done) == 2:
            raise KeyboardInterrupt("the machine was switched off")
        done.append(commit(self, *args))
        return done[-1]

    with monkeypatch.context() as patch:
        patch.setattr(writer.UnitWriter, "commit", dying)
        with pytest.raises(BaseException, match="switched off|failed"):
            embed(*inputs, output=out, flags=flags)
    assert not (out / "_SUCCESS").exists()
    from clip_transforms.parts.dataset import check_dataset
    from clip_transforms.parts.reader import DatasetError

    with pytest.raises(DatasetError, match="an --overwrite was interrupted"):
        check_dataset(str(out))
    with pytest.raises(ValueError, match="--embedding_dtype was 'float16', but is now 'float32'"):
        embed(*inputs, output=out)
    # Without the flag: what is left of the old settings lies in this run's input, and is of no use any more.
    embed(*inputs, output=out, flags=flags[:2])
    assert units_of(out) == (2, 2)
    assert_same_as_new(embed, out, *inputs, flags=flags[:2])


def test_overwriting_what_agrees_does_nothing(embed, tmp_path):
    out = tmp_path / "out"
    embed(make_tar(tmp_path / "a.tar", 3), output=out)
    before = files_of(out)
    embed(tmp_path / "a.tar", output=out, flags=["--overwrite"])
    assert units_of(out) == (0, 1) and files_of(out) == before
