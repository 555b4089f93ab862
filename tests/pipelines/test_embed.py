"""The command, end to end, on small real shards and into an empty output."""

import importlib
import json
import os
import subprocess
import sys
import textwrap

import apache_beam as beam
import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from conftest import ROOT, files_of, make_folder, make_parquet, make_tar, pair, picture, rows_of, write_tar

from clip_transforms import ClipSpec, EmbedShards, ReadEmbeddings, ReaderOptions, Taxonomy, clip
from clip_transforms.read_embeddings import read_embeddings


def blemished(path):
    """Seven samples with everything that may be wrong with one."""
    return write_tar(
        path,
        [
            *pair("good", 0),
            *pair("no-caption", 1, caption=None)[:1],
            *pair("no-image", 2)[1:],
            *pair("broken-image", 3, jpg=picture(3, (200, 200))[:900]),
            *pair("broken-caption", 4, caption=b"\xff\xfe\xfd"),
            *pair("long", 5, caption="word " * 100),
            ("nothing.npy", b"x"),
        ],
    )


def test_a_blemished_shard_is_accounted_for_to_the_last_modality(embed, tmp_path, taxonomy_file, capsys):
    out = tmp_path / "out"
    flags = ["--taxonomy", taxonomy_file, "--max_reject_fraction", 0.5]
    embed(blemished(tmp_path / "a.tar"), output=out, flags=flags)
    rows = rows_of(out)
    assert [(r["key"], r["image_embedding"] is not None, r["caption_embedding"] is not None) for r in rows] == [
        ("good", True, True),
        ("no-caption", True, False),
        ("no-image", False, True),
        ("broken-image", False, True),
        ("broken-caption", True, False),
        ("long", True, True),
    ]
    assert [(r["key"], r["modality"], r["stage"], r["reason"]) for r in rows_of(out, "rejects")] == [
        ("broken-image", "image", "decode", "truncated"),
        ("broken-caption", "caption", "read", "not UTF-8"),
    ]
    assert [r["label"] is not None for r in rows_of(out, "labels/animals")] == [True, True, False, False, True, True]
    assert (rows[5]["caption_tokens"], rows[5]["caption_truncated"]) == (77, True)
    printed = capsys.readouterr().out
    assert "images    7 = 4 embedded + 1 rejected (1 decode: truncated) + 2 absent" in printed
    assert "captions  7 = 4 embedded + 1 rejected (1 read: not UTF-8) + 2 absent; 1 cut at 77 tokens" in printed
    assert (out / "_SUCCESS").exists() and not (out / "_temporary").exists()


def test_the_rows_are_what_the_model_gives(embed, tmp_path, tiny_checkpoint):
    assert embed(make_tar(tmp_path / "a.tar", 5), output=tmp_path / "out") == 0
    model = clip.load(tiny_checkpoint, "cpu", precision="fp32")
    rows = rows_of(tmp_path / "out")
    assert len(rows) == 5
    for i, row in enumerate(rows):
        assert (row["key"], row["row"], row["width"], row["height"]) == (f"{i:06d}", i, 40, 30)
        assert row["shard"] == str(tmp_path / "a.tar")
        pixels = clip.decode_image(picture(i), side=model.image_side)
        np.testing.assert_allclose(row["image_embedding"], model.embed_images(pixels[None])[0], atol=1e-5)
        np.testing.assert_allclose(row["caption_embedding"], model.embed_captions(row["caption"])[0], atol=1e-5)


def test_every_layout_gives_the_same_embeddings(embed, tmp_path):
    make_tar(tmp_path / "a.tar", 9)
    make_parquet(tmp_path / "b.parquet", 9)
    make_folder(tmp_path / "c", 9)
    found = []
    for name in ("a.tar", "b.parquet", "c"):
        embed(tmp_path / name, output=tmp_path / f"out-{name}")
        rows = rows_of(tmp_path / f"out-{name}")
        found.append([(r["caption"], r["image_embedding"], r["caption_embedding"], r["clip_score"]) for r in rows])
    assert found[0] == found[1] == found[2]


@pytest.mark.slow  # an interpreter without pandas imports everything: eight seconds; the verbs are tested by default
def test_pandas_is_not_needed(tmp_path, tiny_checkpoint):
    argv = ["--input", make_tar(tmp_path / "a.tar", 2), "--output", str(tmp_path / "out")]
    argv += ["--model", tiny_checkpoint, "--precision=fp32"]
    code = textwrap.dedent(
        """
        import sys
        for finder in sys.meta_path:
            find = finder.find_spec
            finder.find_spec = lambda name, *rest, find=find: None if name == "pandas" else find(name, *rest)
        from pipelines import embed
        sys.exit(embed.main(sys.argv[1:]))
        """
    )
    done = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.returncode == 0, done.stderr
    assert len(rows_of(tmp_path / "out")) == 2


def test_too_many_rejects_are_exit_3_without_success(embed, tmp_path, capsys):
    embed(blemished(tmp_path / "a.tar"), output=tmp_path / "out", code=3)
    assert "--max_reject_fraction 0.05" in capsys.readouterr().out
    assert not (tmp_path / "out" / "_SUCCESS").exists()
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert not run["complete"] and run["problems"]


def test_a_sample_dropped_inside_the_engine_makes_the_run_fail(embed, tmp_path, monkeypatch, capfd):
    from clip_transforms.engine import decode

    original = decode.DecodeAhead._submit

    def dropping(self, pool, item):
        is_batch = isinstance(item, tuple)
        return original(self, pool, (item[0], item[1].slice(1)) if is_batch else item)

    monkeypatch.setattr(decode.DecodeAhead, "_submit", dropping)
    embed(make_tar(tmp_path / "a.tar", 5), output=tmp_path / "out", code=1)
    assert "5 samples were read, but of their images 4 embedded" in capfd.readouterr().err
    assert files_of(tmp_path / "out") == {} and not (tmp_path / "out" / "_SUCCESS").exists()
    assert not (tmp_path / "out" / "_temporary").exists()


def test_columns_of_the_users_own(embed, tmp_path):
    data = json.dumps({"width": 640, "licence": "mine"}).encode()
    path = write_tar(tmp_path / "a.tar", pair("a", 0, cls=b"7", json=data) + pair("b", 1))
    flags = ["--columns", "cls:int32", "w=width:int64", "licence"]
    embed(path, output=tmp_path / "out", flags=flags)
    assert [(r["cls"], r["w"], r["licence"]) for r in rows_of(tmp_path / "out")] == [(7, 640, "mine"), (None,) * 3]
    (part,) = (tmp_path / "out" / "embeddings").glob("*.parquet")
    assert [str(pq.read_schema(part).field(n).type) for n in ("cls", "w", "licence")] == ["int32", "int64", "string"]


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(embed, tmp_path, capsys):
    make_tar(tmp_path / "a.tar", 5)
    embed(tmp_path / "a.tar", output=tmp_path / "out", flags=["--dry_run"])
    printed = capsys.readouterr().out
    assert "1 webdataset shard" in printed and "1 to embed" in printed and "nothing was written" in printed
    assert not (tmp_path / "out").exists()


def test_the_transform_yields_part_results_and_reading_back_joins_labels(tmp_path, tiny_checkpoint, taxonomy_file):
    for name in ("a", "b"):
        make_tar(tmp_path / f"{name}.tar", 4)
    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        parts = pipeline | EmbedShards(
            inputs=[str(tmp_path / "{a,b}.tar")],
            output=str(tmp_path / "out"),
            model=ClipSpec(tiny_checkpoint, precision="fp32"),
            taxonomies=[Taxonomy.load(taxonomy_file)],
            reader=ReaderOptions(limit=3),
        )
        _ = (
            parts
            | beam.Map(lambda result: (result.path, result.counts["samples"]))
            | beam.Map(record, str(tmp_path / "seen"))
        )
    seen = sorted((tmp_path / "seen").read_text().splitlines())
    assert len(seen) == 2 and all(line.endswith(" 3") for line in seen)
    columns = ["key", "image_embedding", "animals.label"]
    batches = list(read_embeddings(str(tmp_path / "out"), columns, labels=["animals"]))
    assert sum(batch.num_rows for batch in batches) == 6
    assert batches[0].schema.names == columns
    assert batches[0].schema.field("image_embedding").type.list_size == 48
    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        kept = pipeline | ReadEmbeddings(str(tmp_path / "out"), columns=["key", "clip_score"])
        _ = (
            kept
            | beam.Map(lambda batch: (batch.schema.names, batch.num_rows))
            | beam.Map(record, str(tmp_path / "kept"))
        )
    assert len((tmp_path / "kept").read_text().splitlines()) == 2


def record(element, path):
    with open(path, "a") as file:
        file.write(" ".join(map(str, element)) + "\n")


def test_any_fsspec_output(embed, tmp_path):
    memory = fsspec.filesystem("memory")
    try:
        embed(make_tar(tmp_path / "a.tar", 5), output="memory://dataset/out")
        memory.get("/dataset/out", str(tmp_path / "copy"), recursive=True)
        assert len(rows_of(tmp_path / "copy")) == 5
        assert memory.exists("/dataset/out/_SUCCESS") and not memory.exists("/dataset/out/_temporary")
        embed(tmp_path / "a.tar", output="memory://dataset/out")
    finally:
        memory.rm("/dataset", recursive=True)


def test_a_shard_that_looks_like_one_under_another_uri_gets_one_warning(embed, tmp_path, capsys):
    make_tar(tmp_path / "a.tar", 2)
    embed(tmp_path / "a.tar", output=tmp_path / "out")
    (tmp_path / "moved").mkdir()
    os.rename(tmp_path / "a.tar", tmp_path / "moved" / "a.tar")
    embed(tmp_path / "moved" / "a.tar", output=tmp_path / "out")
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning")]
    assert f"{tmp_path}/moved/a.tar has the name and size of {tmp_path}/a.tar" in line


def test_classes_that_the_model_cannot_tell_apart_are_named(embed, tmp_path, caplog):
    (tmp_path / "twins.txt").write_text("cat\nCAT\ndog\n")
    embed(make_tar(tmp_path / "a.tar", 1), output=tmp_path / "out", flags=["--taxonomy", tmp_path / "twins.txt"])
    assert "'cat' and 'CAT'" in caplog.text and "dog" not in caplog.text


def test_a_part_removed_while_the_run_goes_on_is_missed_at_its_end(embed, tmp_path, capsys, monkeypatch):
    embed_shards = importlib.import_module("clip_transforms.embed_shards")
    out, write = tmp_path / "out", embed_shards.write_run

    def write_run(job, summary):
        next((out / "embeddings").glob("*.parquet")).unlink()
        return write(job, summary)

    inputs = [make_tar(tmp_path / f"{i}.tar", 2, first=i) for i in range(2)]
    monkeypatch.setattr(embed_shards, "write_run", write_run)
    embed(*inputs, output=out, code=3)
    lines = capsys.readouterr().out
    assert "embeddings/ should hold 2 parts, but holds 1; run the same command again" in lines
    assert not (out / "_SUCCESS").exists()
    monkeypatch.undo()
    embed(*inputs, output=out)
    assert len(rows_of(out)) == 4


@pytest.mark.parametrize("workers, warned", [(1, False), (2, True)])
def test_one_unit_for_several_workers_is_warned_of(workers, warned, embed, tmp_path, capsys):
    flags = ["--dry_run", "--direct_running_mode", "multi_processing", "--direct_num_workers", workers]
    embed(make_tar(tmp_path / "a.tar", 1), output=tmp_path / "out", flags=flags)
    assert ("warning: there is one unit for 2 workers" in capsys.readouterr().out) is warned


def test_a_column_that_no_sample_has_is_warned_of(embed, tmp_path, capsys):
    embed(make_tar(tmp_path / "a.tar", 2), output=tmp_path / "out", flags=["--columns", "nosuch"])
    assert "warning: no sample has the field of --columns nosuch" in capsys.readouterr().out


def test_a_column_whose_type_holds_no_value_is_named_and_not_said_to_be_missing(embed, tmp_path, capsys):
    listing = "path,link,n\n" + "".join(f"{i}.jpg,somewhere {i},{i}\n" for i in range(3))
    (tmp_path / "a.csv").write_text(listing)
    for i in range(3):
        (tmp_path / f"{i}.jpg").write_bytes(picture(i))
    flags = ["--columns", "w=link:int32", "n:int8", "m=n:date32"]
    embed(tmp_path / "a.csv", output=tmp_path / "out", flags=flags)
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if "--columns" in line] == [
        "note: 3 values of --columns m=n:date32 that could not be cast",
        "note: 3 values of --columns w=link:int32 that could not be cast",
    ]
    assert [row["n"] for row in rows_of(tmp_path / "out")] == [0, 1, 2]


def test_a_parquet_column_whose_type_holds_no_value_is_named_too(embed, tmp_path, capsys):
    table = pa.table({"image": [picture(i) for i in range(4)], "url": ["a", "b", None, "4"], "size": [300, 5, 6, 7]})
    pq.write_table(table, tmp_path / "a.parquet")
    embed(tmp_path / "a.parquet", output=tmp_path / "out", flags=["--columns", "w=url:int32", "size:int8"])
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if "--columns" in line] == [
        "note: 1 value of --columns size:int8 that could not be cast",
        "note: 2 values of --columns w=url:int32 that could not be cast",
    ]
    assert [row["w"] for row in rows_of(tmp_path / "out")] == [None, None, None, 4]


def test_an_input_given_twice_counts_twice(embed, tmp_path):
    flags = ["--input", make_tar(tmp_path / "b.tar", 3, first=9), "--columns", "x", "--columns", "y"]
    embed(make_tar(tmp_path / "a.tar", 2), output=tmp_path / "out", flags=flags)
    rows = rows_of(tmp_path / "out")
    assert len(rows) == 5 and {"x", "y"} <= rows[0].keys()


def test_reading_back_gives_one_schema_also_of_parts_without_images(embed, tmp_path):
    write_tar(tmp_path / "b.tar", pair("words", 1)[1:])
    embed(make_tar(tmp_path / "a.tar", 2), tmp_path / "b.tar", output=tmp_path / "out")
    table = pa.Table.from_batches(list(read_embeddings(str(tmp_path / "out"))))
    assert table.num_rows == 3 and table.schema.field("image_embedding").type.list_size == 48


def test_success_goes_when_the_same_dataset_is_no_longer_complete(embed, tmp_path):
    blemished(tmp_path / "a.tar")
    embed(tmp_path / "a.tar", output=tmp_path / "out", flags=["--max_reject_fraction", 1])
    embed(tmp_path / "a.tar", output=tmp_path / "out", code=3)
    assert not (tmp_path / "out" / "_SUCCESS").exists()
