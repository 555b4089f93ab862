"""A part is whole or not there, says what it is, and its files belong together."""

import dataclasses
import json
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clip_transforms.parts.counts import BalanceError, check_balance, reject_fractions
from clip_transforms.parts.footers import read_footer
from clip_transforms.parts.manifest import make_folders
from clip_transforms.parts.reader import DatasetError, read_table
from clip_transforms.parts.writer import PartSettings, UnitWriter
from schemas.captions import captions_schema
from schemas.embeddings import embeddings_schema
from schemas.labels import labels_schema
from schemas.rejects import rejects_schema

SCHEMA = embeddings_schema()


def rows(first, count, image=True):
    one = [0.6, 0.8] if image else None
    return pa.RecordBatch.from_pylist(
        [{"key": str(i), "shard": "s", "row": i, "image_embedding": one} for i in range(first, first + count)],
        schema=SCHEMA,
    )


def labels(batch):
    return pa.RecordBatch.from_pylist(
        [{"key": r["key"], "shard": "s", "row": r["row"], "label": "x"} for r in batch.to_pylist()],
        schema=labels_schema(),
    )


def rejects(*reasons):
    return pa.RecordBatch.from_pylist(
        [
            {
                "key": "k",
                "shard": "s",
                "row": 90 + i,
                "modality": "image",
                "stage": "decode",
                "reason": r,
                "message": "",
            }
            for i, r in enumerate(reasons)
        ],
        schema=rejects_schema(),
    )


@pytest.fixture
def settings(tmp_path):
    make_folders(str(tmp_path), ["labels/t", "captions"])
    (tmp_path / "_temporary" / "run").mkdir(parents=True)
    footer = {"fingerprint": "f", "provenance": {"model_sha256": "m", "embed_dim": 2}}
    return PartSettings(str(tmp_path), str(tmp_path / "_temporary" / "run"), SCHEMA, footer, {"t": {"taxonomy": "t"}})


def write(settings, *batches, reasons=(), part="p", absent_captions=None):
    writer = UnitWriter(settings, part, {"shard": "s", "stamp": "1"})
    samples = 0
    for i, batch in enumerate(batches):
        rejected = rejects(*(reasons if i == 0 else ()))
        samples += batch.num_rows + rejected.num_rows
        absent = batch.num_rows + rejected.num_rows
        writer.write(batch, {"t": labels(batch)}, rejected, {"image": 0, "caption": absent})
    return writer, samples


def test_a_committed_unit_is_three_files_with_one_digest_and_its_counts(settings, tmp_path):
    writer, samples = write(settings, rows(0, 3), rows(3, 2), reasons=["truncated", "empty"])
    with writer:
        counts = writer.commit(samples, {"something odd": 2, "field.prompt": 4})
    footers = [read_footer(str(tmp_path / kind / "p.parquet")) for kind in ("embeddings", "rejects", "labels/t")]
    assert len({footer["digest"] for footer in footers}) == 1
    assert footers[0]["counts"] == dict(counts)
    assert counts["samples"] == 7 and counts["image.embedded"] == 5 and counts["image.rejected"] == 2
    assert counts["image.rejected.decode: truncated"] == 1 and counts["note.something odd"] == 2
    assert counts["field.prompt"] == 4 and not any("note.field" in name for name in counts)
    assert footers[2]["taxonomy"] == "t" and "taxonomy" not in footers[0]
    assert os.listdir(tmp_path / "_temporary" / "run") == []


def test_nothing_appears_before_the_commit_and_nothing_stays_after_abandoning(settings, tmp_path):
    writer, _ = write(settings, rows(0, 3))
    assert not list(tmp_path.glob("embeddings/*")) and os.listdir(tmp_path / "_temporary" / "run")
    writer.__exit__()
    assert not list(tmp_path.glob("*/*.parquet")) and os.listdir(tmp_path / "_temporary" / "run") == []


@pytest.mark.parametrize("lost", [1, -1], ids=["one lost", "one made up"])
def test_a_part_that_does_not_balance_is_not_committed(settings, tmp_path, lost):
    writer, samples = write(settings, rows(0, 3))
    with pytest.raises(BalanceError, match="was not committed"):
        writer.commit(samples + lost, {})
    writer.__exit__()
    assert not list(tmp_path.glob("*/*.parquet"))


def test_both_modalities_must_balance():
    good = {"samples": 3, "image.embedded": 2, "image.rejected": 1, "caption.absent": 3}
    check_balance(good, "here")
    with pytest.raises(BalanceError, match="captions 0 embedded \\+ 0 rejected \\+ 2 absent"):
        check_balance(good | {"caption.absent": 2}, "here")


def test_the_embeddings_appear_last(settings, tmp_path, monkeypatch):
    from clip_transforms import storage

    order, original = [], storage.commit_file
    monkeypatch.setattr(storage, "commit_file", lambda local, uri: order.append(uri) or original(local, uri))
    writer, samples = write(settings, rows(0, 3))
    writer.commit(samples, {})
    assert [os.path.relpath(uri, tmp_path) for uri in order] == [
        "labels/t/p.parquet",
        "rejects/p.parquet",
        "embeddings/p.parquet",
    ]


def test_every_file_is_synced_before_it_is_renamed(settings, monkeypatch):
    calls = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: calls.append("fsync") or fsync(handle))
    monkeypatch.setattr(os, "replace", lambda a, b: calls.append("replace") or replace(a, b))
    writer, samples = write(settings, rows(0, 3))
    writer.commit(samples, {})
    assert calls == ["fsync", "replace", "fsync"] * 3


def test_the_digest_depends_on_rows_and_rejects_and_on_nothing_else(settings, tmp_path):
    def digest(part, *batches, **kwargs):
        writer, samples = write(settings, *batches, part=part, **kwargs)
        writer.commit(samples, {})
        return read_footer(str(tmp_path / "embeddings" / f"{part}.parquet"))["digest"]

    assert digest("a", rows(0, 3)) == digest("b", rows(0, 3)) == digest("c", rows(9, 5).slice(0, 0), rows(0, 3))
    assert digest("d", rows(0, 4)) != digest("a2", rows(0, 3)) != digest("e", rows(0, 3), reasons=["empty"])


def test_equal_rows_give_equal_bytes(settings, tmp_path):
    for part in ("a", "b"):
        writer, samples = write(settings, rows(0, 3), part=part)
        writer.commit(samples, {})
    for kind in ("embeddings", "rejects", "labels/t"):
        assert (tmp_path / kind / "a.parquet").read_bytes() == (tmp_path / kind / "b.parquet").read_bytes()


def test_a_part_without_rows_has_no_row_group(settings, tmp_path):
    writer, _ = write(settings)
    writer.commit(0, {})
    for kind in ("embeddings", "rejects", "labels/t"):
        metadata = pq.read_metadata(tmp_path / kind / "p.parquet")
        assert (metadata.num_rows, metadata.num_row_groups) == (0, 0)


def test_row_groups_have_a_few_thousand_rows_and_embeddings_no_dictionary(settings, tmp_path):
    writer, samples = write(settings, *(rows(i * 1000, 1000) for i in range(10)))
    writer.commit(samples, {})
    metadata = pq.read_metadata(tmp_path / "embeddings" / "p.parquet")
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == [5000, 5000]
    columns = {metadata.row_group(0).column(i).path_in_schema: metadata.row_group(0).column(i) for i in range(13)}
    embedding = columns["image_embedding.list.element"]
    assert "BYTE_STREAM_SPLIT" in embedding.encodings and "RLE_DICTIONARY" not in embedding.encodings
    assert embedding.compression == "ZSTD" and "RLE_DICTIONARY" in columns["shard"].encodings


def test_the_footer_holds_nothing_of_the_moment_or_the_machine(settings, tmp_path):
    writer, samples = write(settings, rows(0, 1))
    writer.commit(samples, {})
    text = json.dumps(read_footer(str(tmp_path / "embeddings" / "p.parquet")))
    assert str(tmp_path) not in text and os.uname().nodename not in text


def test_labels_of_other_embeddings_are_never_paired(settings, tmp_path):
    for part, count in (("a", 3), ("b", 4)):
        writer, samples = write(settings, rows(0, count), part=part)
        writer.commit(samples, {})
    assert read_table(str(tmp_path), "a", taxonomies=["t"]).num_rows == 3
    os.replace(tmp_path / "labels" / "t" / "b.parquet", tmp_path / "labels" / "t" / "a.parquet")
    with pytest.raises(DatasetError, match="other embeddings"):
        read_table(str(tmp_path), "a", taxonomies=["t"])


def test_a_damaged_or_foreign_file_is_no_part(tmp_path):
    (tmp_path / "cut.parquet").write_bytes(b"PAR1 and then nothing")
    pq.write_table(pa.table({"a": [1]}), tmp_path / "foreign.parquet")
    assert [read_footer(str(tmp_path / f"{n}.parquet")) for n in ("cut", "foreign", "missing")] == [None] * 3


def test_the_reject_fraction_is_of_what_was_offered_for_each_modality_apart():
    counts = {"image.embedded": 9, "image.rejected": 1, "caption.embedded": 1, "caption.rejected": 1}
    assert reject_fractions(counts) == {"image": 0.1, "caption": 0.5}
    assert reject_fractions({}) == {"image": 0, "caption": 0}


ALL_CAPTIONS = {"captions.offered": 5, "captions.embedded": 3, "captions.rejected": 2}


@pytest.mark.parametrize("change", [{"captions.offered": 6}, {"captions.embedded": 2}, {"captions.rejected": 3}])
def test_all_captions_must_balance_too(change):
    check_balance(ALL_CAPTIONS, "here")
    with pytest.raises(BalanceError, match="captions were read with --captions all, but . embedded \\+ . rejected"):
        check_balance(ALL_CAPTIONS | change, "here")


def all_captions(first, count):
    one = {"key": "k", "shard": "s", "caption": "c", "caption_tokens": 3, "caption_truncated": False}
    one |= {"row": 0, "caption_embedding": [0.6, 0.8]}
    found = [one | {"caption_index": i} for i in range(first, first + count)]
    return pa.RecordBatch.from_pylist(found, schema=captions_schema())


@pytest.mark.parametrize("offered", [6, 7, 8])
def test_captions_that_are_lost_or_made_up_are_not_committed(offered, settings, tmp_path):
    settings = dataclasses.replace(settings, captions_schema=captions_schema())
    writer, samples = write(settings, rows(0, 3))
    writer.write_captions(all_captions(0, 5), {"read: not text": 1, "embed: not finite": 1})
    if offered != 7:
        with pytest.raises(BalanceError, match="was not committed"):
            writer.commit(samples, {}, offered)
        writer.__exit__()
        assert not list(tmp_path.glob("*/*.parquet"))
        return
    counts = writer.commit(samples, {}, offered)
    assert {name: count for name, count in counts.items() if name.startswith("captions.")} == {
        "captions.offered": 7,
        "captions.embedded": 5,
        "captions.truncated": 0,
        "captions.rejected": 2,
        "captions.rejected.read: not text": 1,
        "captions.rejected.embed: not finite": 1,
    }


def test_captions_appear_before_the_rejects_and_the_embeddings(settings, tmp_path, monkeypatch):
    from clip_transforms import storage

    order, original = [], storage.commit_file
    monkeypatch.setattr(storage, "commit_file", lambda local, uri: order.append(uri) or original(local, uri))
    writer, samples = write(dataclasses.replace(settings, captions_schema=captions_schema()), rows(0, 1))
    writer.write_captions(all_captions(0, 2), {})
    writer.commit(samples, {}, 2)
    kinds = ["labels/t", "captions", "rejects", "embeddings"]
    assert [os.path.relpath(uri, tmp_path) for uri in order] == [f"{kind}/p.parquet" for kind in kinds]
    assert len({read_footer(str(tmp_path / kind / "p.parquet"))["digest"] for kind in kinds}) == 1
    metadata = pq.read_metadata(tmp_path / "captions" / "p.parquet")
    columns = {metadata.row_group(0).column(i).path_in_schema: metadata.row_group(0).column(i) for i in range(9)}
    assert "BYTE_STREAM_SPLIT" in columns["caption_embedding.list.element"].encodings


def test_a_run_without_captions_removes_those_of_the_embeddings_that_it_replaces(settings, tmp_path):
    writer, samples = write(dataclasses.replace(settings, captions_schema=captions_schema()), rows(0, 1))
    writer.commit(samples, {}, 0)
    assert (tmp_path / "captions" / "p.parquet").exists()
    writer, samples = write(dataclasses.replace(settings, other_kinds=["captions"]), rows(0, 1))
    writer.commit(samples, {})
    assert not (tmp_path / "captions" / "p.parquet").exists()


def test_the_reject_fraction_of_all_captions_is_there_only_with_their_counts():
    assert reject_fractions(ALL_CAPTIONS) == {"image": 0, "caption": 0, "captions": 0.4}
