"""The command over an output that holds something already: nothing to do, something changed, other settings."""

import json
import os
import subprocess
import sys

import pytest
from conftest import ROOT, command, files_of, make_parquet, make_tar, picture, rows_of, write_tar


def test_a_second_run_does_nothing_loads_no_model_and_says_so(tmp_path, tiny_checkpoint, taxonomy_file):
    make_tar(tmp_path / "a.tar", 5)
    argv = ["--input", tmp_path / "a.tar", "--output", tmp_path / "out", "--model", tiny_checkpoint, "--precision=fp32"]
    argv += ["--taxonomy", taxonomy_file]
    first = command("pipelines.embed", *argv)
    assert first.returncode == 0, first.stderr
    before = files_of(tmp_path / "out")
    code = "import sys; from pipelines import embed; c = embed.main(sys.argv[1:]); print('torch' in sys.modules, c)"
    second = subprocess.run(
        [sys.executable, "-c", code, *map(str, argv)], capture_output=True, text=True, cwd=ROOT, timeout=60
    )
    assert "0 units committed, 1 skipped" in second.stdout
    assert second.stdout.splitlines()[-1] == "False 0", second.stderr
    assert files_of(tmp_path / "out") == before
    assert json.loads((tmp_path / "out" / "run.json").read_text())["input"]["samples"] == 5


def test_runs_add_to_a_dataset_and_run_json_tells_input_from_dataset(embed, tmp_path):
    out = tmp_path / "out"
    embed(make_tar(tmp_path / "a.tar", 5), output=out)
    embed(make_tar(tmp_path / "b.tar", 3), output=out)
    run = json.loads((out / "run.json").read_text())
    assert (run["input"]["samples"], run["dataset"]["samples"], run["dataset"]["parts"]) == (3, 8, 2)
    assert len(list((out / "runs").iterdir())) == 2


def test_a_changed_source_is_done_again(embed, tmp_path):
    out = tmp_path / "out"
    embed(make_tar(tmp_path / "a.tar", 5), make_tar(tmp_path / "b.tar", 5), output=out)
    make_tar(tmp_path / "b.tar", 6, first=20)
    embed(tmp_path / "a.tar", tmp_path / "b.tar", output=out)
    run = json.loads((out / "run.json").read_text())
    assert run["units"] == {"input": 2, "committed": 1, "skipped": 1, "labelled": 0}
    assert [r["key"] for r in rows_of(out)][5:] == [f"{i:06d}" for i in range(20, 26)]


@pytest.mark.parametrize("damage", ["delete", "truncate"])
@pytest.mark.parametrize("kind", ["embeddings", "rejects"])
def test_a_part_that_is_gone_or_cut_is_done_again(kind, damage, embed, tmp_path):
    out = tmp_path / "out"
    embed(make_tar(tmp_path / "a.tar", 5), output=out)
    before = files_of(out)
    (path,) = (out / kind).glob("*.parquet")
    path.unlink() if damage == "delete" else path.write_bytes(path.read_bytes()[:200])
    embed(tmp_path / "a.tar", output=out)
    assert files_of(out) == before


def test_a_damaged_shard_is_exit_3_and_tried_again_the_next_day(embed, tmp_path, capsys):
    out, path = tmp_path / "out", tmp_path / "a.tar"
    make_tar(path, 5)
    whole, stamp = path.read_bytes(), os.stat(path)
    path.write_bytes(whole[: len(whole) // 2].ljust(len(whole), b"\xff"))
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    embed(path, output=out, code=3)
    assert "1 shard could not be read" in capsys.readouterr().out and not (out / "_SUCCESS").exists()
    assert 0 < len(rows_of(out)) < 5
    assert [r["modality"] for r in rows_of(out, "rejects")][0] == "shard"
    embed(path, output=out, flags=["--allow_damaged_shards"])
    path.write_bytes(whole)
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    embed(path, output=out)
    assert len(rows_of(out)) == 5 and rows_of(out, "rejects") == []


def test_parts_of_other_inputs_are_told_of_with_a_cure_that_cures(embed, tmp_path, capsys):
    a, b, out = make_tar(tmp_path / "a.tar", 2), make_tar(tmp_path / "b.tar", 3), tmp_path / "out"
    embed(a, b, output=out)
    embed(a, output=out)
    assert "give each input an --output of its own" in capsys.readouterr().out
    embed(a, output=tmp_path / "own")
    assert "of other inputs" not in capsys.readouterr().out and len(rows_of(tmp_path / "own")) == 2
    for path in out.rglob("b-*.parquet"):  # as docs/troubleshooting.md says
        path.unlink()
    embed(a, output=out)
    assert "of other inputs" not in capsys.readouterr().out
    assert len(rows_of(out)) == 2 and (out / "_SUCCESS").exists()


def test_overwriting_with_the_same_settings_does_nothing(embed, tmp_path, capsys):
    a, b, out = make_tar(tmp_path / "a.tar", 2), make_tar(tmp_path / "b.tar", 3), tmp_path / "out"
    embed(a, b, output=out)
    before = files_of(out)
    embed(a, output=out, flags=["--overwrite"])
    assert "nothing was left to do" in capsys.readouterr().out
    assert len(before) == 4 and files_of(out) == before


def test_the_limit_is_part_of_the_fingerprint(embed, tmp_path):
    make_tar(tmp_path / "a.tar", 5)
    embed(tmp_path / "a.tar", output=tmp_path / "out", flags=["--limit", 2])
    assert len(rows_of(tmp_path / "out")) == 2
    with pytest.raises(ValueError, match="--limit was '2', but is now not given"):
        embed(tmp_path / "a.tar", output=tmp_path / "out")
    embed(tmp_path / "a.tar", output=tmp_path / "out", flags=["--overwrite"])
    assert len(rows_of(tmp_path / "out")) == 5


def test_overwriting_keeps_no_part_of_the_old_settings(embed, tmp_path):
    a, b = make_tar(tmp_path / "a.tar", 2), make_tar(tmp_path / "b.tar", 2)
    embed(a, b, output=tmp_path / "out")
    flags = ["--overwrite", "--embedding_dtype", "float16"]
    with pytest.raises(ValueError, match="would leave 1 part of other settings"):
        embed(a, output=tmp_path / "out", flags=flags)
    embed(a, b, output=tmp_path / "out", flags=flags)


def test_run_json_tells_the_device_of_skipped_parts_too(embed, tmp_path):
    for _ in range(2):
        embed(make_tar(tmp_path / "a.tar", 2), output=tmp_path / "out", flags=["--precision", "fp32"])
    assert json.loads((tmp_path / "out" / "run.json").read_text())["parts_by_device"] == {"fp32 on cpu": 1}


def test_a_parquet_file_cut_anew_leaves_no_row_twice(embed, tmp_path):
    out = tmp_path / "out"
    embed(make_parquet(tmp_path / "a.parquet", 6, row_group_size=6), output=out)
    make_parquet(tmp_path / "a.parquet", 6, row_group_size=1)
    import clip_transforms.shards.cut as cut_module

    original = cut_module.ROWS_PER_PARQUET_UNIT
    cut_module.ROWS_PER_PARQUET_UNIT = 2
    try:
        embed(tmp_path / "a.parquet", output=out)
    finally:
        cut_module.ROWS_PER_PARQUET_UNIT = original
    assert [row["row"] for row in rows_of(out)] == list(range(6))
    assert len(files_of(out)) == 6 and json.loads((out / "run.json").read_text())["dataset"]["parts"] == 3


def test_a_folder_that_holds_something_else_is_never_written_into(embed, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    (tmp_path / "mine" / "broken").symlink_to("/nowhere")
    with pytest.raises(ValueError, match="holds something else"):
        embed(make_tar(tmp_path / "a.tar", 1), output=tmp_path / "mine")


def test_a_rejects_part_of_another_unit_is_found(embed, tmp_path):
    out = tmp_path / "out"
    embed(make_tar(tmp_path / "a.tar", 2), make_tar(tmp_path / "b.tar", 2, first=5), output=out)
    before = files_of(out)
    a, b = sorted((out / "rejects").glob("*.parquet"))
    a.write_bytes(b.read_bytes())
    embed(tmp_path / "a.tar", tmp_path / "b.tar", output=out)
    assert files_of(out) == before


def test_fast_decode_is_part_of_the_fingerprint_and_reaches_the_workers(embed, tmp_path, capsys):
    path = write_tar(tmp_path / "a.tar", [("a.jpg", picture(0, (640, 480))), ("b.jpg", picture(1, (40, 30)))])
    embed(path, output=tmp_path / "usual")
    embed(path, output=tmp_path / "fast", flags=["--fast_decode"])
    usual, fast = (rows_of(tmp_path / name) for name in ("usual", "fast"))
    assert usual[0]["image_embedding"] != fast[0]["image_embedding"]
    assert usual[1]["image_embedding"] == fast[1]["image_embedding"], "a small picture is decoded whole"
    assert [row["width"] for row in fast] == [640, 40]
    with pytest.raises(ValueError, match="--fast_decode was not given, but is given now"):
        embed(path, output=tmp_path / "usual", flags=["--fast_decode"])
