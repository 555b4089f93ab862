"""The last printed lines and the numbers in them."""

import fcntl
import os
import pty
import struct
import subprocess
import termios
from collections import Counter

import pytest
from conftest import ROOT, make_tar
from forked import Process

from clip_transforms.run.summary import PartResult, RunSummary, speed
from pipelines.closing_lines import closing_lines
from pipelines.embed import main

RUN = {
    "units": {"input": 4, "committed": 4, "skipped": 0, "labelled": 0},
    "taxonomies": {"animals": "d"},
    "problems": [],
    "dataset": {"parts": 4, "samples": 10_000},
    "input": {
        "samples": 10_000,
        "image.embedded": 9_988,
        "image.rejected": 12,
        "image.rejected.decode: truncated": 10,
        "image.rejected.decode: too many pixels": 2,
        "caption.embedded": 9_997,
        "caption.rejected": 3,
        "caption.rejected.read: not UTF-8": 3,
        "caption.truncated": 41,
        "note.keys that come back after others": 5,
    },
    "speed": {
        "samples": 10_000,
        "samples_per_second": 112.0,
        "ceiling": 123.0,
        "fraction_of_ceiling": 0.91,
        "bound": 0.94,
        "bottleneck": "the model",
        "hint": "buy more",
        "processes": 1,
        "seconds": {},
    },
}


ONE = {
    "keys that come back after others": "key that comes back after others",
    "values of --columns cls:int32 that could not be cast": "value of --columns cls:int32 that could not be cast",
    "rows of listings that have fewer fields than the header": "row of listings that has fewer fields than the header",
    ".zip members that were not read": ".zip member that was not read",
    "extensionless members that were not read": "extensionless member that was not read",
    "members that are dot files, which are not read": "member that is a dot file, which is not read",
    "JSON files that are not a JSON object": "JSON file that is not a JSON object",
    "JSON files that could not be read": "JSON file that could not be read",
    "JSON files and members of more than 16 MiB, which were not read": "JSON file or member of more than 16 MiB, which "
    "was not read",
    "keys whose only images have another extension than --image_extension": "key whose only images have another "
    "extension than --image_extension",
    "images with an EXIF orientation, which was ignored, as published; --exif_orientation apply turns them": "image "
    "with an EXIF orientation, which was ignored, as published; --exif_orientation apply turns it",
    "Parquet files without images": "Parquet file without images",
    "JSON files without a picture": "JSON file without a picture",
    "skipped folders": "skipped folder",
    ".zip": ".zip",
}


@pytest.mark.parametrize("many", ONE)
def test_a_note_about_one_thing_is_in_the_singular(many):
    for count, text in ((1, ONE[many]), (2, many)):
        lines = closing_lines({**RUN, "input": {f"note.{many}": count}}, "out/")
        assert f"note: {count} {text}" in lines


def test_the_lines_of_a_run():
    assert closing_lines(RUN, "out/") == [
        "4 units committed, 0 skipped, in out/ (embeddings, labels/animals, rejects)",
        "images    10,000 = 9,988 embedded + 12 rejected (10 decode: truncated, 2 decode: too many pixels) + 0 absent",
        "captions  10,000 = 9,997 embedded + 3 rejected (3 read: not UTF-8) + 0 absent; 41 cut at 77 tokens",
        "note: 5 keys that come back after others",
        "112 pairs/s, 91% of this process's ceiling (123), where 94% is the most that decoding leaves; "
        "the model is the bottleneck: buy more",
    ]


def test_all_captions_have_a_line_of_their_own():
    counts = {"captions.offered": 50_000, "captions.embedded": 49_997, "captions.rejected": 3, "captions.truncated": 7}
    counts |= {"captions.rejected.read: not text": 2, "captions.rejected.read: not UTF-8": 1}
    lines = closing_lines(RUN | {"input": RUN["input"] | counts}, "out/")
    assert lines[0].endswith("(embeddings, labels/animals, captions, rejects)")
    assert lines[3] == (
        "all captions 50,000 = 49,997 embedded + 3 rejected (2 read: not text, 1 read: not UTF-8); 7 cut at 77 tokens"
    )
    assert [*lines[1:3], *lines[4:]] == closing_lines(RUN, "out/")[1:]


def test_what_else_the_dataset_holds_is_said_and_what_is_wrong_comes_last():
    lines = closing_lines(RUN | {"dataset": {"parts": 5, "samples": 10_007}, "problems": ["something"]}, "out")
    cure = "queries read them all; give each input an --output of its own if you do not want that"
    assert f"note: out also holds 1 part of other inputs, 7 samples; {cure}" in lines
    assert lines[-1] == "not complete: something"


@pytest.mark.parametrize("fraction, bound, claimed", [(0.94, 0.94, True), (0.9404, 0.9396, True), (0.97, 0.94, False)])
def test_no_run_claims_more_than_its_ceiling_leaves(fraction, bound, claimed):
    figures = RUN["speed"] | {"fraction_of_ceiling": fraction, "bound": bound}
    last = closing_lines(RUN | {"speed": figures}, "out/")[-1]
    assert ("of this process's ceiling" in last) is claimed
    assert (
        "the ceiling is not known, since the batches that measure it ran slower (123 pairs/s)" in last
    ) is not claimed


def test_several_processes_have_no_ceiling_but_shares():
    several = {
        "samples": 100,
        "samples_per_second": 2050.4,
        "processes": 2,
        "shares": {"the model": 0.2, "reading": 0.1, "decoding": 0.6, "writing": 0.1},
        "seconds": {},
    }
    last = closing_lines(RUN | {"speed": several}, "out")[-1]
    shares = "the model 20%, reading 10%, decoding 60%, writing 10%"
    assert last == f"2,050 pairs/s with 2 processes, start-up included; their time: {shares}"


def test_the_shares_of_several_processes_are_of_all_their_time():
    figures = {"task": 3.0, "forward": 1.5, "wait for read": 0.5, "wait for decode": 0.25}
    results = [PartResult("p", {"samples": 100}, figures, "fp32 on cpu", process=name) for name in "ab"]
    found = speed(RunSummary.sum(map(RunSummary.of, results)), 4.0)
    assert found["samples_per_second"] == 50 and "bottleneck" not in found and "ceiling" not in found
    assert found["shares"] == {"the model": 0.5, "reading": 0.1667, "decoding": 0.0833, "writing": 0.25}


def test_a_model_far_below_its_ceiling_is_not_told_to_be_larger():
    figures = {"task": 10.0, "forward": 9.0, "wait for read": 0.5, "wait for decode": 0.5, "decode / cores": 0.0}
    near, far = (speed(summary(figures, ceiling=ceiling), 1.0) for ceiling in (11.0, 20.0))
    assert (near["bottleneck"], far["bottleneck"]) == ("the model", "the model")
    assert "a GPU makes it faster" in near["hint"] and "went slower than in the run's first batches" in far["hint"]
    on_gpu = speed(summary(figures, ceiling=20.0, obtained="bf16 on cuda"), 1.0)
    assert "a second GPU" in on_gpu["hint"], "nothing else uses its cores"


IMAGE_FLAGS = "--image_extension EXT for tars, --image_column NAME for Parquet files and listings"


@pytest.mark.parametrize(
    "absent, fields, said",
    [
        ("caption", {}, "note: no sample has a caption"),
        (
            "caption",
            {"width": 2, "prompt": 8, ".cap": 8},
            "note: no sample has a caption; samples have the fields .cap, prompt and width; if one of them is meant, "
            "name it: --caption_column NAME",
        ),
        (
            "image",
            {".heic": 3},
            "note: no sample has an image; samples have the field .heic; if one of them is meant, name it: "
            f"{IMAGE_FLAGS}",
        ),
        (
            "image caption",
            {f"f{i:02}": 1 for i in range(30)},
            f"note: no sample has an image or a caption; samples have the fields "
            f"{', '.join(f'f{i:02}' for i in range(12))} and 18 more; if one of them is meant, name it: {IMAGE_FLAGS}, "
            "--caption_column NAME",
        ),
        ("", {"prompt": 8}, None),
    ],
    ids=["none seen", "several", "one", "both", "not absent"],
)
def test_a_modality_that_every_sample_lacks_is_told_with_the_fields_that_were_seen(absent, fields, said):
    counts = {"samples": 8, **{f"{modality}.absent": 8 for modality in absent.split()}}
    counts |= {f"field.{name}": number for name, number in fields.items()}
    lines = closing_lines(RUN | {"input": counts}, "out")
    assert [line for line in lines if "no sample has" in line] == ([said] if said else [])
    told = RUN | {"input": counts, "problems": ["nothing was embedded: no sample has an image …"]}
    assert not [line for line in closing_lines(told, "out") if line.startswith("note: no sample")]


@pytest.mark.parametrize(
    "missing, said",
    [
        (0, "share 1/4 is done, and with it the whole plan, 6 units"),
        (1, "share 1/4 is done; 1 unit of the plan is not committed yet, so there is no _SUCCESS"),
        (2, "share 1/4 is done; 2 units of the plan are not committed yet, so there is no _SUCCESS"),
    ],
)
def test_a_share_says_how_far_the_plan_is(missing, said):
    plan = {"share": "1/4", "units": 6, "missing": missing, "counts": {"samples": 10_000}}
    lines = closing_lines(RUN | {"plan": plan, "dataset": {"parts": 6 - missing, "samples": 10_000}}, "out")
    assert lines[-1] == said and not any("of other inputs" in line for line in lines)


def test_a_run_with_nothing_to_do_says_so_and_an_incomplete_one_says_why():
    idle = RUN | {"units": {"input": 4, "committed": 0, "skipped": 4, "labelled": 0}, "speed": {"samples": 0}}
    assert closing_lines(idle, "out")[-1] == "nothing was left to do"
    lines = closing_lines(RUN | {"problems": ["1 shards could not be read"]}, "out")
    assert "not complete: 1 shards could not be read" in lines


@pytest.mark.parametrize(
    "slow, name, hint",
    [
        ("forward", "the model", "a GPU"),
        ("wait for read", "reading", "a disk or a bucket closer"),
        ("wait for decode", "decoding", "--fast_decode"),
        ("task", "writing", "a faster disk for --output"),
    ],
)
def test_the_bottleneck_is_the_stage_with_the_largest_wait_behind_it(slow, name, hint):
    seconds = {"task": 4.0, "forward": 1.5, "wait for read": 1.0, "wait for decode": 1.0}
    found = speed(summary(seconds | {slow: 9.0, "task": 4.0 + 8.0}), 1.0)
    assert found["bottleneck"] == name and hint in found["hint"]


def test_a_run_of_a_few_batches_and_seconds_names_no_bottleneck():
    figures = {"task": 0.3, "wait for read": 0.2}
    short = speed(summary(figures), 1.0)
    assert "bottleneck" not in short and "hint" not in short
    assert closing_lines(RUN | {"speed": short}, "out")[-1] == "333 pairs/s; too short a run to tell what held it back"
    for telling in (summary(figures, ceiling=500.0), summary(figures | {"task": 10.5, "wait for read": 10.2})):
        assert speed(telling, 1.0)["bottleneck"] == "reading"


def summary(seconds, ceiling=None, obtained="fp32 on cpu"):
    result = PartResult("p", {"samples": 100}, seconds, obtained, process="a", ceiling=ceiling)
    return RunSummary.of(result)


def test_ceiling_and_bound_by_hand():
    # 100 samples in 10 s; alone the model would take 4 s; decoding takes 2 s of each core.
    found = speed(summary({"task": 10.0, "forward": 6.0, "decode": 4.0, "decode / cores": 2.0}, ceiling=25.0), 99.0)
    assert (found["samples_per_second"], found["fraction_of_ceiling"]) == (10.0, 0.4)
    assert found["bound"] == round(4 / (4 + 2), 4)


def test_summaries_add_up_in_any_order_and_stay_small():
    results = [
        PartResult(
            f"p{i}", {"samples": i, "image.embedded": i}, {"forward": 1.0}, "fp32 on cpu", process=f"host-{i % 5}"
        )
        for i in range(50)
    ]
    ours = RunSummary.sum(map(RunSummary.of, results))
    other = RunSummary.sum(map(RunSummary.of, reversed(results)))
    assert ours == other and ours.units == 50 and ours.counts == Counter({"samples": 1225, "image.embedded": 1225})
    assert len(ours.processes) == 5
    many = [PartResult("p", {"samples": 1}, {}, "fp32 on cpu", process=f"host-{i}") for i in range(1000)]
    assert len(RunSummary.sum(map(RunSummary.of, many)).processes) == 100


def test_the_bar_shows_samples_on_a_terminal_and_is_quiet_elsewhere(tmp_path, tiny_checkpoint, capfd):
    for i in range(6):
        make_tar(tmp_path / f"{i}.tar", 10, first=10 * i)
    argv = ["--input", str(tmp_path / "*.tar"), "--model", tiny_checkpoint, "--precision=fp32", "--output"]
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))  # a bar needs room
    process = Process(
        "-m",
        "pipelines.embed",
        *argv,
        str(tmp_path / "a"),
        stderr=theirs,
        stdout=subprocess.DEVNULL,
        cwd=ROOT,
    )
    os.close(theirs)
    shown = b""
    while True:
        try:
            shown += os.read(ours, 4096)
        except OSError:  # the other end is closed
            break
    os.close(ours)
    assert process.wait(timeout=60) == 0
    assert b"embedding" in shown and b"60 samples" in shown and b"100%" in shown
    assert main([*argv, str(tmp_path / "b")]) == 0 and capfd.readouterr().err == ""


def test_parts_of_different_precisions_are_a_note():
    run = RUN | {"parts_by_device": {"fp32 on cpu": 3, "bf16 on cpu": 1}}
    (line,) = [line for line in closing_lines(run, "out") if "rounding" in line]
    assert line.startswith("note: 1 part in bf16 on cpu, 3 parts in fp32 on cpu; the embeddings differ by rounding")
    assert not [
        line for line in closing_lines(RUN | {"parts_by_device": {"fp32 on cpu": 4}}, "out") if "rounding" in line
    ]
