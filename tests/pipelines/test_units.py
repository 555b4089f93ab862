"""--units i/n: the shares of a plan, done by several runs of one command, are together what one run is."""

import json
import subprocess

import apache_beam as beam
import pytest
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from conftest import ROOT, files_of, make_parquet, make_tar, pair, rows_of, write_tar
from forked import Process

from clip_transforms import ClipSpec, EmbedShards
from clip_transforms.parts import manifest
from clip_transforms.run import end
from clip_transforms.run.begin import Beginning, begin_run
from clip_transforms.run.job import read_units
from clip_transforms.run.plan import plan_run
from clip_transforms.run.settings import Settings
from clip_transforms.shards import cut

IDS = ["in order", "the other way round"]
BOTH_ORDERS = pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=IDS)
# The same code, seen from the other side.
EITHER_ORDER = pytest.mark.parametrize("order", [(0, 1), pytest.param((1, 0), marks=pytest.mark.slow)], ids=IDS)


def run_of(out):
    return json.loads((out / "run.json").read_text())


@pytest.fixture
def share(embed, tmp_path, capsys):
    """Do share i of n into `out`; exit code, last line, and whether there is _SUCCESS."""

    def run(i, n, *inputs, flags=()):
        code = embed(*inputs, output=tmp_path / "out", flags=[*flags, "--units", f"{i}/{n}"], code=None)
        return code, capsys.readouterr().out.strip().splitlines()[-1], (tmp_path / "out" / "_SUCCESS").exists()

    return run


@pytest.fixture
def tars(tmp_path):
    for i in range(5):
        make_tar(tmp_path / f"{i}.tar", 3, first=3 * i)
    return tmp_path / "*.tar"


def waiting(i, n, units):
    are = "unit of the plan is" if units == 1 else "units of the plan are"
    return 0, f"share {i}/{n} is done; {units} {are} not committed yet, so there is no _SUCCESS", False


def whole(i, n, units):
    return 0, f"share {i}/{n} is done, and with it the whole plan, {units} units", True


@BOTH_ORDERS
def test_two_shares_are_one_run(order, share, embed, tars, tmp_path, taxonomy_file):
    first, last = order
    units, flags = {0: 3, 1: 2}, ["--taxonomy", taxonomy_file]
    assert share(first, 2, tars, flags=flags) == waiting(first, 2, units[last])
    run = run_of(tmp_path / "out")
    assert not run["complete"] and run["problems"] == [] and run["units"]["input"] == units[first]
    assert run["input"]["samples"] == run["dataset"]["samples"] == 3 * units[first]
    assert share(last, 2, tars, flags=flags) == whole(last, 2, 5)
    embed(tars, output=tmp_path / "one", flags=flags)
    assert files_of(tmp_path / "out") == files_of(tmp_path / "one")
    run, one = run_of(tmp_path / "out"), run_of(tmp_path / "one")
    assert run["complete"] and run["dataset"] == one["dataset"] and run["plan"]["counts"] == one["input"]
    assert run["input"]["samples"] == 3 * units[last], "its own share's"
    assert share(first, 2, tars, flags=flags) == whole(first, 2, 5), "nothing was left to do"
    embed(tars, output=tmp_path / "out", flags=flags)
    assert run_of(tmp_path / "out")["units"]["skipped"] == 5


@pytest.mark.timeout(200)
def test_shares_that_start_at_once_on_an_empty_output(tars, tmp_path, tiny_checkpoint, embed):
    argv = ["--input", str(tars), "--output", str(tmp_path / "out")]
    argv += ["--model", tiny_checkpoint, "--precision=fp32", "--units"]
    runs = [
        Process(
            "-m",
            "pipelines.embed",
            *argv,
            f"{i}/2",
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    said = [run.communicate(timeout=150) for run in runs]
    assert [run.returncode for run in runs] == [0, 0], said
    for i, (out, _) in enumerate(said):
        assert f"share {i}/2 is done" in out and f"{3 - i} units committed" in out, "each speaks of its own run"
    assert any("the whole plan, 5 units" in out for out, _ in said)
    embed(tars, output=tmp_path / "one")
    assert files_of(tmp_path / "out") == files_of(tmp_path / "one")
    assert (tmp_path / "out" / "_SUCCESS").exists() and run_of(tmp_path / "out")["complete"]
    assert not (tmp_path / "out" / "_temporary").exists()


@pytest.mark.parametrize("place", ["committed_now", "finish_run"], ids=["before it looks", "after it has looked"])
def test_two_shares_that_end_at_the_same_moment_do_not_both_miss_it(
    place, share, tars, tmp_path, tiny_checkpoint, monkeypatch
):
    real, nested = getattr(end, place), []

    def other_first(*args, **kwargs):
        if not nested:
            nested.append(True)
            with beam.Pipeline(runner=FnApiRunner()) as pipeline:
                spec = ClipSpec(tiny_checkpoint, precision="fp32")
                _ = pipeline | EmbedShards([str(tars)], str(tmp_path / "out"), spec, units="1/2")
            assert (tmp_path / "out" / "_SUCCESS").exists(), "it was the last, as far as it could see"
        result = real(*args, **kwargs)
        complete = (tmp_path / "out" / "_SUCCESS").exists()
        assert complete or place != "finish_run", "what is complete is not taken back, not for a moment"
        return result

    monkeypatch.setattr(end, place, other_first)
    assert share(0, 2, tars) == whole(0, 2, 5)
    assert run_of(tmp_path / "out")["complete"]


def test_a_share_says_what_is_missing_and_the_other_one_mends_it(share, tars, tmp_path):
    assert share(0, 2, tars) == waiting(0, 2, 2) and share(1, 2, tars) == whole(1, 2, 5)
    before = files_of(tmp_path / "out")
    (lost,) = (tmp_path / "out" / "embeddings").glob("1-*.parquet")  # a unit of share 1
    lost.unlink()
    assert share(0, 2, tars) == waiting(0, 2, 1), "what was a success is none any more"
    (tmp_path / "out" / "rejects" / lost.name).unlink()
    assert share(1, 2, tars) == whole(1, 2, 5) and run_of(tmp_path / "out")["units"]["committed"] == 1
    assert files_of(tmp_path / "out") == before


def test_a_source_that_changed_is_missing_until_its_share_did_it_again(share, tars, tmp_path):
    share(0, 2, tars), share(1, 2, tars)
    make_tar(tmp_path / "3.tar", 4, first=50)
    assert share(0, 2, tars) == waiting(0, 2, 1)
    assert run_of(tmp_path / "out")["dataset"]["parts"] == 4 and len(files_of(tmp_path / "out")) == 10
    assert share(1, 2, tars) == whole(1, 2, 5) and len(rows_of(tmp_path / "out")) == 16


def test_the_order_of_the_inputs_makes_no_other_shares(share, tmp_path):
    first, second = make_tar(tmp_path / "a.tar", 3), make_parquet(tmp_path / "b.parquet", 3, first=3)
    assert share(0, 2, first, second) == waiting(0, 2, 1)
    assert share(1, 2, second, first) == whole(1, 2, 2)


def test_more_shares_than_units(share, tmp_path):
    make_tar(tmp_path / "a.tar", 3)
    assert share(2, 3, tmp_path / "a.tar") == waiting(2, 3, 1)
    assert share(0, 3, tmp_path / "a.tar")[2] and share(1, 3, tmp_path / "a.tar")[2]


def test_parts_of_other_inputs_are_no_shares(share, embed, tars, tmp_path, capsys):
    embed(make_parquet(tmp_path / "other.parquet", 4, first=90), output=tmp_path / "out")
    share(0, 2, tars)
    embed(tars, output=tmp_path / "out", flags=["--units", "1/2"])
    assert "also holds 1 part of other inputs, 4 samples" in capsys.readouterr().out
    assert run_of(tmp_path / "out")["dataset"]["samples"] == 19


# Rejects are judged over the plan when all of it is there, damage at once.


@BOTH_ORDERS
@pytest.mark.parametrize("good, success", [(30, True), (10, False)], ids=["within the limit", "beyond it"])
def test_rejects_are_judged_over_the_whole_plan_as_soon_as_it_is_there(order, good, success, share, tmp_path):
    bad = [member for i in range(3) for member in pair(f"{i}", i, jpg=b"broken" if i == 0 else None)]
    write_tar(tmp_path / "0.tar", bad), make_tar(tmp_path / "1.tar", good)
    limit = ["--max_reject_fraction", "0.05"]
    first, last = (share(i, 2, tmp_path / "0.tar", tmp_path / "1.tar", flags=limit) for i in order)
    assert first[0] == 0 and not first[2]
    assert (last[0], last[2]) == ((0, True) if success else (3, False))
    assert success or "of the images were rejected" in last[1]


@EITHER_ORDER
def test_a_damaged_shard_is_its_own_shares_affair(order, share, tmp_path):
    inputs = [tmp_path / "0.tar", tmp_path / "1.tar"]
    make_tar(inputs[0], 3), make_tar(inputs[1], 3, first=3)
    inputs[0].write_bytes(inputs[0].read_bytes()[:5000])
    for i in order:
        code, line, success = share(i, 2, *inputs)
        assert (
            (code == 3 and "could not be read to the end" in line) if i == 0 else (code, line) == waiting(1, 2, 1)[:2]
        )
        assert not success
    accepted = [share(i, 2, *inputs, flags=["--allow_damaged_shards"]) for i in order]
    assert [code for code, *_ in accepted] == [0, 0] and accepted[1][2]


def test_only_the_rejects_of_the_share_are_tried_again(share, tmp_path):
    for i in range(2):
        write_tar(tmp_path / f"{i}.tar", pair("a", i) + pair("b", 9 + i, caption=b"\xff"))
    inputs, flags = [tmp_path / "0.tar", tmp_path / "1.tar"], ["--max_reject_fraction", "1"]
    share(0, 2, *inputs, flags=flags), share(1, 2, *inputs, flags=flags)
    assert share(1, 2, *inputs, flags=[*flags, "--retry_rejects"]) == whole(1, 2, 2)
    assert run_of(tmp_path / "out")["units"] == {"input": 1, "committed": 1, "skipped": 0, "labelled": 0}


# A dataset that changes


@EITHER_ORDER
def test_the_parts_of_a_shard_that_was_cut_anew_go_when_all_shares_are_done(order, share, embed, tmp_path, monkeypatch):
    rows, out = make_parquet(tmp_path / "rows.parquet", 12, row_group_size=4), tmp_path / "out"
    embed(rows, output=out)
    old = files_of(out)
    monkeypatch.setattr(cut, "ROWS_PER_PARQUET_UNIT", 4)
    assert share(order[0], 3, rows) == waiting(order[0], 3, 2) and run_of(out)["dataset"]["parts"] == 1
    assert share(order[1], 3, rows) == waiting(order[1], 3, 1) and old.items() <= files_of(out).items()
    assert share(2, 3, rows) == whole(2, 3, 3) and run_of(out)["dataset"]["parts"] == 3
    assert not old.keys() & files_of(out).keys() and len(rows_of(out)) == 12


@EITHER_ORDER
def test_an_overwrite_by_shares_is_one_by_one_run(order, share, embed, tars, tmp_path):
    out, flags = tmp_path / "out", ["--embedding_dtype", "float16", "--overwrite"]
    embed(tars, output=out)
    assert share(order[0], 2, tars, flags=flags)[0::2] == (0, False)
    assert share(order[1], 2, tars, flags=flags) == whole(order[1], 2, 5)
    embed(tars, output=tmp_path / "one", flags=flags)
    assert files_of(out) == files_of(tmp_path / "one")


@EITHER_ORDER
def test_labels_of_a_new_taxonomy_are_made_by_shares(order, share, tars, tmp_path, taxonomy_file):
    for i in order:
        share(i, 2, tars)
    flags, units = ["--taxonomy", taxonomy_file], {0: 3, 1: 2}
    assert share(order[0], 2, tars, flags=flags) == waiting(order[0], 2, units[order[1]])
    assert share(order[1], 2, tars, flags=flags) == whole(order[1], 2, 5)
    assert len(rows_of(tmp_path / "out", "labels/animals")) == 15
    assert run_of(tmp_path / "out")["units"]["labelled"] == units[order[1]]


# Before anything starts


@pytest.mark.parametrize("units", ["", "4/4", "a/b", "0/0", "-1/2", "1", "1/2/3", "0/ 2", "٠/٢", "1.0/2"])
def test_what_is_no_share_is_refused(units, embed, tmp_path):
    with pytest.raises(ValueError, match="--units is .*, but it must be i/n with i from 0 to n - 1"):
        embed(tmp_path, output=tmp_path / "out", flags=[f"--units={units}"])
    assert not (tmp_path / "out").exists()


def test_shares_cut_the_plan_by_index():
    assert Settings(("a",), "b", ClipSpec("demo"), units="2/7").share == (2, 7)
    assert Settings(("a",), "b", ClipSpec("demo")).share == (0, 1)


def test_in_the_plan_lies_first_what_is_to_be_done_then_what_is_done_then_the_other_shares(
    embed, tars, tmp_path, tiny_checkpoint
):
    out = tmp_path / "out"
    embed(tars, output=out)
    (lost,) = (out / "embeddings").glob("4-*.parquet")
    lost.unlink()
    made = Settings((str(tars),), str(out), ClipSpec(tiny_checkpoint, precision="fp32"), units="0/2")
    job, folder = begin_run(plan_run(made), 1, ())
    with folder:
        siblings = Beginning.read(job.folder).siblings
        planned = read_units(job, 0, job.units + siblings)
    assert (job.units, job.pending, siblings) == (3, 1, 2)
    shards = [(unit.unit.shard.rpartition("/")[2], unit.counts is None) for unit in planned]
    assert shards == [("4.tar", True), ("0.tar", False), ("2.tar", False), ("1.tar", False), ("3.tar", False)]
    assert not (out / "_SUCCESS").exists()


def test_a_dry_run_shows_the_share(embed, tars, tmp_path, capsys):
    embed(tars, output=tmp_path / "out", flags=["--units", "1/2", "--dry_run"])
    said = capsys.readouterr().out
    assert "--units 1/2: 2 of the 5 units of the plan" in said and "2 units, each to become a part: 2 to embed" in said


def test_an_output_that_another_run_begins_at_this_moment_is_no_foreign_folder(tmp_path, monkeypatch):
    exists, seen = manifest.storage.exists, []

    def late(uri):
        if not seen:
            seen.append(uri)
            manifest.write_dataset(str(tmp_path), {"model": "m"}, "m", {}, str(tmp_path))
            (tmp_path / "embeddings").mkdir()
            return False
        return exists(uri)

    monkeypatch.setattr(manifest.storage, "exists", late)
    assert manifest.read_dataset(str(tmp_path))["settings"] == {"model": "m"}
