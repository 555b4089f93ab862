"""A run that embeds nothing at all over its whole input ends with exit code 3, whatever was found instead."""

import json
import os
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import ROOT, files_of, make_tar, pair, picture, write_tar

from clip_transforms import ClipSpec, embed_shards

FLAGS = "--image_extension EXT for tars, --image_column NAME for Parquet files and listings, --caption_column NAME"
ABSENT = (
    "nothing was embedded: no sample has an image or a caption that is read{}; convert other kinds of pictures to JPEG "
    f"or PNG, unpack tars inside tars, or name the field that is meant: {FLAGS}"
)
EMPTY = "nothing was embedded: --input holds no sample, in 1 unit; look at what wrote it, or give another --input"


def problem_of(capsys):
    """The last printed line, without what every incomplete run says."""
    return capsys.readouterr().out.strip().splitlines()[-1].removeprefix("not complete: ")


def write_jpeg_2000(path):
    return write_tar(path, [(f"{i}.jp2", b"\0\0\0\x0cjP  ") for i in range(3)])


def write_tar_of_tars(path):
    inner = make_tar(path.with_suffix(".inner"), 2)
    with open(inner, "rb") as file:
        data = file.read()
    return write_tar(path.with_suffix(".tar"), [("n01440764.tar", data), ("n01443537.tar", data)])


def write_nulls(path):
    columns = {"image": pa.nulls(3, pa.binary()), "caption": pa.array(["", " ", None])}
    pq.write_table(pa.table(columns), path.with_suffix(".parquet"))
    return path.with_suffix(".parquet")


def write_text(path, text):
    path.write_text(text)
    return path


INPUTS = {
    "jpeg 2000": (write_jpeg_2000, 3, ABSENT),
    "tar of tars": (write_tar_of_tars, 2, ABSENT),
    "images under another extension": (
        lambda p: write_tar(p, [("a.img", picture(1)), ("b.img", picture(2))]),
        2,
        ABSENT,
    ),
    "nulls": (write_nulls, 3, ABSENT),
    "empty tar": (lambda p: write_tar(p, []), 0, EMPTY),
    "listing without rows": (lambda p: write_text(p.with_suffix(".csv"), "image,caption\n"), 0, EMPTY),
    "listing of no byte": (lambda p: write_text(p.with_suffix(".jsonl"), ""), 0, EMPTY),
}


@pytest.mark.parametrize("write, samples, said", INPUTS.values(), ids=INPUTS)
def test_nothing_to_embed_is_no_success(write, samples, said, embed, tmp_path, capsys):
    out = tmp_path / "out"
    source = write(tmp_path / "a.tar")
    for skipped in (0, 1):  # the second run has nothing left to do, and says the same
        embed(source, output=out, code=3)
        problem = problem_of(capsys)
        assert problem.startswith(said.split("{}")[0]) and problem.endswith(said.split("{}")[-1])
        run = json.loads((out / "run.json").read_text())
        assert run["problems"] == [problem] and not run["complete"] and run["units"]["skipped"] == skipped
        assert run["input"]["samples"] == samples and not (out / "_SUCCESS").exists()


def test_one_sample_that_is_embedded_is_enough(embed, tmp_path, capsys):
    sources = [write_jpeg_2000(tmp_path / "a.tar"), write_tar(tmp_path / "b.tar", pair("a", 1)[1:])]
    embed(*sources, output=tmp_path / "out")
    assert (tmp_path / "out" / "_SUCCESS").exists()
    assert "note: no sample has an image" in capsys.readouterr().out


@pytest.mark.parametrize(
    "members, flags, said",
    [
        (
            [("a.jpg", b"<html>"), ("b.jpg", b""), ("b.txt", b"\xff\xfe")],
            ["--max_reject_fraction", 1],
            "nothing was embedded: all that was offered was rejected, 2 images and 1 caption (see rejects/); mend it "
            "and run again",
        ),
        (
            None,
            ["--allow_damaged_shards"],
            "nothing was embedded: 1 shard could not be read to the end (see rejects/), and no sample comes before the "
            "damage; mend and run again",
        ),
    ],
    ids=["rejects", "damage"],
)
def test_no_flag_accepts_a_run_of_nothing_and_none_is_offered(members, flags, said, embed, tmp_path, capsys):
    if members is None:
        (tmp_path / "a.tar").write_bytes(b"no tar" * 500)
    else:
        write_tar(tmp_path / "a.tar", members)
    embed(tmp_path / "a.tar", output=tmp_path / "out", flags=flags, code=3)
    assert problem_of(capsys) == said
    embed(tmp_path / "a.tar", output=tmp_path / "out", code=3)
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("not complete: ")] == [f"not complete: {said}"]


def test_damage_beside_samples_without_anything_is_told_too(embed, tmp_path, capsys):
    whole = write_jpeg_2000(tmp_path / "whole.tar")
    with open(whole, "rb") as file:
        (tmp_path / "a.tar").write_bytes(file.read()[:2400])
    embed(tmp_path / "a.tar", output=tmp_path / "out", code=3)
    assert "; 1 shard could not be read to the end (see rejects/); convert" in problem_of(capsys)


def test_shares_are_judged_over_the_whole_plan(embed, tmp_path, capsys):
    for name in "ab":
        write_jpeg_2000(tmp_path / f"{name}.tar")
    out = tmp_path / "out"
    embed(tmp_path / "*.tar", output=out, flags=["--units", "0/2"])
    assert "no _SUCCESS" in problem_of(capsys)
    embed(tmp_path / "*.tar", output=out, flags=["--units", "1/2"], code=3)
    assert problem_of(capsys).startswith("nothing was embedded: no sample has an image or a caption")
    make_tar(tmp_path / "c.tar", 2)
    for i, code in ((0, 0), (1, 0), (0, 0)):  # the third tar is in share 0
        embed(tmp_path / "*.tar", output=out, flags=["--units", f"{i}/2"], code=code)
    assert (out / "_SUCCESS").exists()


def test_a_dry_run_and_what_earlier_runs_embedded_are_judged_as_ever(embed, tmp_path, capsys):
    bad, good, out = write_jpeg_2000(tmp_path / "a.tar"), make_tar(tmp_path / "b.tar", 2), tmp_path / "out"
    embed(bad, output=out, flags=["--dry_run"])
    assert not out.exists()
    embed(good, output=out)
    embed(good, output=out)
    assert (out / "_SUCCESS").exists() and "nothing was left to do" in capsys.readouterr().out
    embed(bad, output=out, code=3)
    assert not (out / "_SUCCESS").exists()
    embed(bad, good, output=out)
    assert (out / "_SUCCESS").exists()


def test_the_plain_function_says_so_in_its_problems(tiny_checkpoint, tmp_path):
    result = embed_shards(write_jpeg_2000(tmp_path / "a.tar"), tmp_path / "out", ClipSpec(tiny_checkpoint))
    assert not result["complete"] and result["problems"][0].startswith("nothing was embedded: ")


@pytest.mark.parametrize(
    "keep, said",
    [
        (0, "note: no sample has a caption"),
        (1, "note: no sample has an image"),
    ],
    ids=["images alone", "captions alone"],
)
def test_a_modality_that_no_sample_has_is_told(keep, said, embed, tmp_path, capsys):
    write_tar(tmp_path / "a.tar", [pair(f"{i}", i)[keep] for i in range(3)])
    embed(tmp_path / "a.tar", output=tmp_path / "out")
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("note: no sample")] == [said]
    make_tar(tmp_path / "b.tar", 1)
    embed(tmp_path / "*.tar", output=tmp_path / "out")
    assert "note: no sample" not in capsys.readouterr().out


def described_tar(folder):
    members = [(f"{i}.jpg", picture(i)) for i in range(3)]
    members += [(f"{i}.json", b'{"description": "a red star", "width": 40}') for i in range(3)]
    return write_tar(folder / "a.tar", sorted(members))


def described_parquet(folder):
    rows = {"image": [picture(i) for i in range(3)], "description": ["a red star"] * 3, "width": [40] * 3}
    pq.write_table(pa.table(rows), folder / "a.parquet")
    return folder / "a.parquet"


def described_csv(folder):
    for i in range(3):
        (folder / f"{i}.jpg").write_bytes(picture(i))
    rows = "".join(f"{i}.jpg,a red star,40\n" for i in range(3))
    return write_text(folder / "a.csv", f"path,description,width\n{rows}")


def described_folder(folder):
    (folder / "photos").mkdir()
    for i in range(3):
        (folder / "photos" / f"{i}.jpg").write_bytes(picture(i))
        (folder / "photos" / f"{i}.json").write_text('{"description": "a red star", "width": 40}')
    return folder / "photos"


@pytest.mark.parametrize("write", [described_tar, described_parquet, described_csv, described_folder])
def test_the_note_names_the_fields_and_its_cure_cures(write, embed, tmp_path, capsys):
    source = write(tmp_path)
    embed(source, output=tmp_path / "out")
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: no sample has")]
    fields = "fields description and width" if write is described_csv else "field description"  # a CSV has texts alone
    cure = "if one of them is meant, name it: --caption_column NAME"
    assert line == f"note: no sample has a caption; samples have the {fields}; {cure}"
    embed(source, output=tmp_path / "out")
    assert line in capsys.readouterr().out, "a second run knows it from the parts"
    embed(source, output=tmp_path / "described", flags=["--caption_column", "description"])
    said = capsys.readouterr().out
    assert "captions  3 = 3 embedded" in said and "no sample has" not in said


def test_a_tar_of_other_extensions_names_them_and_its_cure_cures(embed, tmp_path, capsys):
    tar = write_tar(tmp_path / "a.tar", [("a.img", picture(1)), ("b.img", picture(2))])
    embed(tar, output=tmp_path / "out", code=3)
    assert "; samples have the field .img; convert" in problem_of(capsys)
    embed(tar, output=tmp_path / "named", flags=["--image_extension", "img"])
    assert "images    2 = 2 embedded" in capsys.readouterr().out


@pytest.mark.slow  # two interpreters with hashes of their own, which import everything: fifteen seconds
def test_the_fields_of_a_part_do_not_depend_on_the_hashes_of_texts(tiny_checkpoint, tmp_path):
    """More fields than are named, in a tar; two processes with other hashes give the same bytes."""
    fields = json.dumps({f"field {i}": str(i) for i in range(50)}).encode()
    tar = write_tar(tmp_path / "a.tar", [("a.jpg", picture(1)), ("a.json", fields)])
    for seed in "12":
        argv = ["-m", "pipelines.embed", "--input", tar, "--output", tmp_path / seed, "--model", tiny_checkpoint]
        environment = os.environ | {"PYTHONHASHSEED": seed}
        subprocess.run([sys.executable, *argv, "--precision=fp32"], cwd=ROOT, env=environment, check=True, timeout=100)
    assert files_of(tmp_path / "1") == files_of(tmp_path / "2")
    counts = json.loads((tmp_path / "1" / "run.json").read_text())["input"]
    assert sum(name.startswith("field.") for name in counts) == 20
