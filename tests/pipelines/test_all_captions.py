"""`--captions all`: every caption has a row in captions/, a part of the unit that is committed and counted with it."""

import json
import re

import apache_beam as beam
import count_sources
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.testing.util import assert_that
from conftest import files_of, make_folder, pair, picture, rows_of, write_tar

from clip_transforms import (
    Dataset,
    EmbedShards,
    ReadEmbeddings,
    ReaderOptions,
    Taxonomy,
    embed_shards,
    label_embeddings,
    read_embeddings,
)
from clip_transforms.clip.checkpoints import load
from clip_transforms.parts.footers import read_footer
from clip_transforms.parts.manifest import read_run
from clip_transforms.parts.reader import DatasetError
from schemas.captions import captions_schema

ALL = ("--captions", "all")
ANIMALS = Taxonomy.from_json("animals", {"classes": ["cat", "dog"]})
LONG = "a long text about a cat and a dog and a cow that go for a walk " * 9
# Five captions, one, none with a picture, none at all, a bad one among good ones, a bad first one, captions alone, a
# picture that is none, and one that is too long.
SAMPLES = [
    (picture(0), ["red", "green", "blue", "white", "black"]),
    (picture(1), ["only"]),
    (picture(2), []),
    (None, []),
    (picture(4), ["good", 7, "better"]),
    (picture(5), [7, "second"]),
    (None, [8, "alone"]),
    (b"no picture", ["a", "b"]),
    (picture(8), ["short", LONG, "red"]),
]
BAD = "the caption is {}, but it must be a text"
ROWS = [  # row, caption_index, caption
    *((0, i, text) for i, text in enumerate(["red", "green", "blue", "white", "black"])),
    (1, 0, "only"),
    *((4, 0, "good"), (4, 2, "better"), (5, 1, "second"), (6, 1, "alone"), (7, 0, "a"), (7, 1, "b")),
    *((8, 0, "short"), (8, 1, LONG), (8, 2, "red")),
]


def make_json_tar(path, samples=SAMPLES):
    """Write samples whose captions are a JSON list."""
    members = []
    for i, (image, captions) in enumerate(samples):
        members += [(f"{i}.jpg", image)] if image is not None else []
        members.append((f"{i}.json", json.dumps({"caption": captions}).encode()))
    return write_tar(path, members)


def make_line_tar(path, lines, first=0):
    """Write a tar with a picture for each of `lines`, lists of captions that become the lines of a text file."""
    return write_tar(path, [m for i, texts in enumerate(lines, first) for m in pair(f"{i}", i, "\n".join(texts))])


def short(rows):
    return [(row["row"], row["caption_index"], row["caption"]) for row in rows]


@pytest.fixture(scope="module")
def model(tiny_checkpoint):
    return load(tiny_checkpoint, "cpu", precision="fp32")


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_rows_the_rejects_and_the_counts_are_exactly_these(embed, tmp_path, model, capsys, dtype):
    flags = [*ALL, "--embedding_dtype", dtype, "--max_reject_fraction", "0.5", "--batch_size", "4"]
    embed(make_json_tar(tmp_path / "a.tar"), output=tmp_path / "out", flags=flags)
    (path,) = (tmp_path / "out" / "captions").glob("*.parquet")
    table = pq.read_table(path)
    assert table.schema.remove_metadata().equals(captions_schema(dtype)) and short(table.to_pylist()) == ROWS
    samples = {row["row"]: row for row in rows_of(tmp_path / "out")}
    assert {row: samples[row]["caption"] for row in samples} == {
        0: "red", 1: "only", 2: None, 4: "good", 5: None, 7: "a", 8: "short"
    }  # fmt: skip
    wanted = model.embed_captions([text for *_, text in ROWS]).numpy()
    for row, vector in zip(table.to_pylist(), wanted, strict=True):
        stored = np.array(row["caption_embedding"], np.float32)
        np.testing.assert_allclose(stored, vector, atol=1e-5 if dtype == "float32" else 1e-3)
        sample = samples.get(row["row"], {})
        assert row["key"] == str(row["row"]) and row["shard"] == str(tmp_path / "a.tar")
        assert row["caption_tokens"] == min(77, len(row["caption"].split()) + 2)
        assert row["caption_truncated"] == (row["caption"] == LONG)
        if (image := sample.get("image_embedding")) is None:
            assert row["clip_score"] is None and row["row"] in (6, 7)
        else:
            image = np.array(image, np.float32)
            cosine = image @ stored / np.linalg.norm(image) / np.linalg.norm(stored)
            assert row["clip_score"] == pytest.approx(cosine, abs=1e-6)
        if row["caption_index"] == 0:
            for name in ("caption", "caption_tokens", "caption_truncated", "caption_embedding", "clip_score"):
                assert row[name] == sample[name], name
    rejects = [(r["row"], r["modality"], r["reason"], r["message"]) for r in rows_of(tmp_path / "out", "rejects")]
    assert rejects[:3] == [
        (4, "captions", "not text", f"1 of 3 captions; the first is caption_index 1: {BAD.format(7)}"),
        (5, "caption", "not text", BAD.format(7)),
        (6, "caption", "not text", BAD.format(8)),
    ]
    assert [reject[:3] for reject in rejects[3:]] == [(7, "image", "unknown format")]
    counts = read_run(str(tmp_path / "out"))["input"]
    assert {name: count for name, count in counts.items() if name.startswith("captions.")} == {
        "captions.offered": 18,
        "captions.embedded": 15,
        "captions.rejected": 3,
        "captions.rejected.read: not text": 3,
        "captions.truncated": 1,
    }
    assert count_sources.compare(read_run(str(tmp_path / "out")), [str(tmp_path / "a.tar")]) == []
    said = capsys.readouterr().out.splitlines()
    assert "captions  9 = 5 embedded + 2 rejected (2 read: not text) + 2 absent" in said
    assert "all captions 18 = 15 embedded + 3 rejected (3 read: not text); 1 cut at 77 tokens" in said
    assert said[1].endswith("(embeddings, captions, rejects)")


def test_every_layout_gives_the_same_rows(embed, tmp_path):
    lines = [["red", "green", "blue", "white", "black"], ["only"], [], ["two", "lines"]]
    tar = make_line_tar(tmp_path / "a.tar", lines)
    folder = tmp_path / "photos"
    make_folder(folder, 4)
    for i, texts in enumerate(lines):
        (folder / f"{i:06d}.txt").write_text("\n \n".join(texts))
    texts = pa.array(lines, pa.list_(pa.string()))
    pq.write_table(pa.table({"image": [picture(i) for i in range(4)], "caption": texts}), tmp_path / "a.parquet")
    with open(tmp_path / "a.jsonl", "w") as file:
        for i, captions in enumerate(lines):
            file.write(json.dumps({"image": f"photos/{i:06d}.jpg", "caption": captions}) + "\n")
    with open(tmp_path / "a.csv", "w") as file:
        file.write("image,caption\nphotos/000000.jpg,red\nphotos/000000.jpg,green\n")
    expected = [(i, place, text) for i, texts in enumerate(lines) for place, text in enumerate(texts)]
    found = []
    for source in (tar, folder, tmp_path / "a.parquet", tmp_path / "a.jsonl"):
        out = tmp_path / f"out-{len(found)}"
        embed(source, output=out, flags=ALL)
        found.append(rows_of(out, "captions"))
        assert short(found[-1]) == expected
        assert count_sources.compare(read_run(str(out)), [str(source)]) == []
        for one, other in zip(found[0], found[-1], strict=True):
            assert one["caption_embedding"] == pytest.approx(other["caption_embedding"], abs=1e-6)
            assert one["clip_score"] == pytest.approx(other["clip_score"], abs=1e-6)
    embed(tmp_path / "a.csv", output=tmp_path / "csv", flags=ALL)
    assert short(rows_of(tmp_path / "csv", "captions")) == [(0, 0, "red"), (1, 0, "green")]
    assert [row["caption"] for row in rows_of(tmp_path / "csv")] == ["red", "green"]


def test_without_the_flag_nothing_of_it_is_there(embed, tmp_path, capsys):
    tar = make_line_tar(tmp_path / "a.tar", [["red", "green"], ["blue"]])
    embed(tar, output=tmp_path / "out")
    assert [row["caption"] for row in rows_of(tmp_path / "out")] == ["red\ngreen", "blue"]
    assert not (tmp_path / "out" / "captions").exists() and "all captions" not in capsys.readouterr().out
    run = read_run(str(tmp_path / "out"))
    assert "captions" not in run["settings"] and not [name for name in run["input"] if name.startswith("captions")]
    embed(tar, output=tmp_path / "same", flags=["--captions", "first"])
    assert files_of(tmp_path / "same") == files_of(tmp_path / "out")
    assert read_run(str(tmp_path / "same"))["fingerprint"] == run["fingerprint"]


def test_a_unit_without_captions_has_a_part_without_rows(embed, tmp_path):
    embed(write_tar(tmp_path / "a.tar", [("0.jpg", picture(0))]), output=tmp_path / "out", flags=ALL)
    (path,) = (tmp_path / "out" / "captions").glob("*.parquet")
    metadata = pq.read_metadata(path)
    assert (metadata.num_rows, metadata.num_row_groups) == (0, 0)
    counts = read_run(str(tmp_path / "out"))["input"]
    assert [counts[f"captions.{fate}"] for fate in ("offered", "embedded", "rejected")] == [0, 0, 0]


def test_the_plain_function_and_beam_give_the_same_bytes_with_labels(tmp_path, spec):
    inputs = [make_json_tar(tmp_path / "a.tar"), make_line_tar(tmp_path / "b.tar", [["a", "b"], ["c"]])]
    settings = {"reader": ReaderOptions(captions="all"), "max_reject_fraction": 0.5, "batch_size": 4}
    result = embed_shards(inputs, tmp_path / "plain", spec, [ANIMALS], **settings)
    with beam.Pipeline(runner="FnApiRunner", options=PipelineOptions([])) as pipeline:
        _ = pipeline | EmbedShards(inputs, tmp_path / "beam", spec, [ANIMALS], **settings)
    files = files_of(tmp_path / "plain")
    assert files == files_of(tmp_path / "beam") and len(files) == 8 and result["complete"]
    assert sum(name.startswith("captions/") for name in files) == 2
    label_embeddings(tmp_path / "plain", [Taxonomy.from_json("more", {"classes": ["a", "b"]})])
    assert {name: files_of(tmp_path / "plain")[name] for name in files} == files, "labels change no other part"
    assert len(rows_of(tmp_path / "plain", "labels/more")) == len(rows_of(tmp_path / "plain")) == 9


def test_all_parts_of_a_unit_have_one_digest_which_depends_on_every_caption(tmp_path, spec):
    digests = []
    for name, last in (("one", "white"), ("two", "black")):
        folder = tmp_path / name
        folder.mkdir()
        tar = make_line_tar(folder / "a.tar", [["red", last]])
        embed_shards(tar, folder / "out", spec, [ANIMALS], reader=ReaderOptions(captions="all"))
        paths = [
            next((folder / "out" / kind).glob("*.parquet")) for kind in ("embeddings", "captions", "labels/animals")
        ]
        assert len({read_footer(str(path))["digest"] for path in paths}) == 1
        digests.append(read_footer(str(paths[0]))["digest"])
    assert digests[0] != digests[1]


def test_too_many_rejects_among_all_captions_are_a_problem_of_their_own(embed, tmp_path, capsys):
    tar = make_json_tar(tmp_path / "a.tar", [(picture(0), ["a", 1, 2, 3])])
    embed(tar, output=tmp_path / "out", flags=ALL, code=3)
    said = "not complete: 75.0% of all captions were rejected (see rejects/), more than --max_reject_fraction 0.05"
    assert said in capsys.readouterr().out
    assert not (tmp_path / "out" / "_SUCCESS").exists()
    embed(tar, output=tmp_path / "out", flags=[*ALL, "--max_reject_fraction", "0.75"])
    assert read_run(str(tmp_path / "out"))["units"]["skipped"] == 1
    embed(tar, output=tmp_path / "out", flags=[*ALL, "--max_reject_fraction", "0.75", "--retry_rejects"])
    assert read_run(str(tmp_path / "out"))["units"]["committed"] == 1, "a further caption was rejected when it was read"


def test_captions_beyond_a_thousand_are_rejected_and_counted(embed, tmp_path):
    texts = [f"caption number {i}" for i in range(1_003)]
    tar = make_line_tar(tmp_path / "a.tar", [texts, ["one"]])
    embed(tar, output=tmp_path / "out", flags=ALL)
    assert short(rows_of(tmp_path / "out", "captions")) == [
        *((0, i, texts[i]) for i in range(1_000)),
        (1, 0, "one"),
    ]
    (reject,) = rows_of(tmp_path / "out", "rejects")
    assert (reject["row"], reject["modality"], reject["reason"]) == (0, "captions", "too many captions")
    said = "3 of 1,003 captions; the first is caption_index 1000: a sample may have at most 1,000 captions"
    assert reject["message"] == said
    counts = read_run(str(tmp_path / "out"))["input"]
    assert (counts["captions.offered"], counts["captions.embedded"], counts["captions.rejected"]) == (1004, 1001, 3)


def test_the_rows_of_all_captions_are_read_with_their_samples_labels(tmp_path, spec):
    inputs = [make_json_tar(tmp_path / "a.tar"), make_line_tar(tmp_path / "b.tar", [["x", "y"], ["z"]], first=20)]
    out = tmp_path / "out"
    embed_shards(inputs, out, spec, [ANIMALS], reader=ReaderOptions(captions="all"), max_reject_fraction=0.5)
    dataset = Dataset.open(out)
    table = dataset.to_table(rows="captions")
    assert table.schema.field("caption_embedding").type == pa.list_(pa.float32(), 48)
    assert table.column_names == captions_schema().names
    assert short(table.to_pylist()) == [*ROWS, (0, 0, "x"), (0, 1, "y"), (1, 0, "z")]
    columns = ["shard", "row", "caption_index", "caption", "animals.label"]
    rows = dataset.to_table(columns, "animals", rows="captions").to_pylist()
    labels = {(row["shard"], row["row"]): row["label"] for row in rows_of(out, "labels/animals")}
    assert len(rows) == len(ROWS) + 3
    assert [row["animals.label"] for row in rows] == [labels.get((row["shard"], row["row"])) for row in rows]
    assert sum(row["animals.label"] is None for row in rows) == 3, "one without a row, two without a picture"
    batches = list(read_embeddings(out, columns, "animals", rows="captions"))
    assert [row for batch in batches for row in batch.to_pylist()] == rows

    def same(found):
        assert sorted(found, key=str) == sorted(rows, key=str)

    with beam.Pipeline(runner="FnApiRunner", options=PipelineOptions([])) as pipeline:
        read = pipeline | ReadEmbeddings(out, columns, "animals", rows="captions")
        assert_that(read | beam.FlatMap(lambda batch: batch.to_pylist()), same)
    assert dataset.to_table().num_rows == len(rows_of(out)) == 9


def test_rows_that_a_dataset_does_not_have_are_refused_with_the_cure(tmp_path, spec):
    tar = make_line_tar(tmp_path / "a.tar", [["a", "b"]])
    embed_shards(tar, tmp_path / "out", spec)
    dataset = Dataset.open(tmp_path / "out")
    said = "holds no captions/, since it was made without --captions all; give pipelines.embed that flag"
    for call in (lambda: dataset.to_table(rows="captions"), lambda: list(dataset.batches(rows="captions"))):
        with pytest.raises(DatasetError, match=re.escape(said)):
            call()
    for call in (lambda: dataset.to_table(rows="caption"), lambda: ReadEmbeddings(tmp_path / "out", rows="caption")):
        with pytest.raises(ValueError, match="rows is 'caption', but it must be embeddings or captions"):
            call()
    embed_shards(tar, tmp_path / "out", spec, reader=ReaderOptions(captions="all"), overwrite=True)
    assert Dataset.open(tmp_path / "out").to_table("caption", rows="captions")["caption"].to_pylist() == ["a", "b"]


def test_captions_of_other_embeddings_are_never_paired(tmp_path, spec):
    for name, text in (("a", "one"), ("b", "two")):
        make_line_tar(tmp_path / f"{name}.tar", [[text, "more"]])
    embed_shards(str(tmp_path / "*.tar"), tmp_path / "out", spec, reader=ReaderOptions(captions="all"))
    first, second = sorted((tmp_path / "out" / "captions").glob("*"))
    first.write_bytes(second.read_bytes())
    with pytest.raises(DatasetError, match="the captions of a-.* were made from other embeddings"):
        Dataset.open(tmp_path / "out").to_table(rows="captions")
    first.unlink()
    with pytest.raises(DatasetError, match=re.escape("is missing (1 of 2 such); run the same embed command again")):
        Dataset.open(tmp_path / "out").to_table(rows="captions")
