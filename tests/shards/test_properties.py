"""Whatever the shards hold: nothing is lost or counted twice, and the way of reading changes no row."""

import csv
import dataclasses
import gzip
import io
import json
import random
import shutil
import tempfile
from collections import Counter
from pathlib import Path

import count_sources
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import make_folder, make_parquet, make_tar, pair, picture, rows_of, write_tar
from fsspec.implementations.local import LocalFileSystem
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reading import read
from tfrecords import write_tfrecord

from clip_transforms.clip.model_spec import ClipSpec
from clip_transforms.parts.manifest import read_run
from clip_transforms.run.begin import begin_run
from clip_transforms.run.embed_units import embed_units
from clip_transforms.run.job import read_units
from clip_transforms.run.plan import plan_run
from clip_transforms.run.settings import Settings
from clip_transforms.shards import cut, cut_listing
from clip_transforms.shards.unit import ReaderOptions

LIMITS = ReaderOptions(max_image_bytes=4_000, max_caption_bytes=60)
IMAGES = {
    "none": None,
    "good": picture(1),
    "png": picture(2, format_="PNG"),
    "empty": b"",
    "cut": picture(3)[:200],
    "garbage": b"<html>not found</html>",
    "large": b"x" * 4_001,
}
CAPTIONS = {
    "none": None,
    "good": b"a cat",
    "blank": b"  \n",
    "marked": b"\xef\xbb\xbfa dog",
    "latin": b"gr\xfcn",
    "nul": b"a\0b",
    "large": b"y" * 61,
    "lines": b'one, "two"\nthree',
    "bad line": b"a\n\n b \n\xff\nc",
}
JSONS = {
    "none": None,
    "good": b'{"caption": "json", "n": 3}',
    "broken": b"{",
    "list": b"[1]",
    "number": b'{"caption": 7}',
    "several": b'{"caption": ["a", " ", 7, null, "b"]}',
}
FORMATS = ("tar", "tar.gz", "tfrecord", "folder", "parquet", "csv", "tsv", "jsonl", "listing.parquet")


def write(format_, samples, root, damage):
    """Write samples in a format, damaged or not; return the input to give."""
    if format_ in ("tar", "tar.gz"):
        write_tars(format_, samples, root / "in.tar", damage)
        return root / ("in.tar" if format_ == "tar" else "in.tar.gz")
    if format_ == "folder":
        for i, (image, caption, text) in enumerate(samples):
            for extension, data in (("jpg", image), ("txt", caption), ("json", text)):
                if data is not None:
                    (root / "in").mkdir(exist_ok=True)
                    (root / "in" / f"{i:03d}.{extension}").write_bytes(data)
        return root / "in"
    if format_ == "tfrecord":
        features = [{"jpg": i, "txt": c, "meta": j} for i, c, j in samples]
        write_tfrecord(root / "in.tfrecord", [{n: v for n, v in f.items() if v is not None} for f in features])
        flip(root / "in.tfrecord", damage)
        return root / "in.tfrecord"
    texts = [caption and caption.decode("utf-8", "surrogateescape") for _, caption, _ in samples]
    if format_ == "parquet":
        bad = pa.array([t if t is None else t.encode("utf-8", "surrogateescape") for t in texts], pa.binary())
        column = pa.Array.from_buffers(pa.string(), len(bad), bad.buffers())
        images = pa.array([image for image, _, _ in samples], pa.binary())
        path = root / "in.parquet"
        pq.write_table(pa.table({"image": images, "caption": column}), path, row_group_size=3)
        flip(path, damage)
        return path
    uris = []
    for i, (image, _, _) in enumerate(samples):
        if image is not None:
            (root / f"{i}.jpg").write_bytes(image)
        uris.append(None if image is None else f"{i}.jpg")
    return write_listing(format_, uris, texts, root, damage)


def write_tars(format_, samples, path, damage):
    members = [
        (f"{i:03d}.{extension}", data)
        for i, sample in enumerate(samples)
        for extension, data in zip(("jpg", "txt", "json"), sample, strict=True)
        if data is not None
    ]
    write_tar(path, members)
    if format_ == "tar.gz":
        Path(f"{path}.gz").write_bytes(gzip.compress(path.read_bytes(), 1))
        path = Path(f"{path}.gz")
    flip(path, damage)


def write_listing(format_, uris, texts, root, damage):
    path = root / f"in.{format_}"
    if format_ == "listing.parquet":
        bad = pa.array([t if t is None else t.encode("utf-8", "surrogateescape") for t in texts], pa.binary())
        column = pa.Array.from_buffers(pa.string(), len(bad), bad.buffers())
        pq.write_table(pa.table({"uri": pa.array(uris, pa.string()), "caption": column}), path, row_group_size=3)
    elif format_ == "jsonl":
        with open(path, "w") as file:
            for uri, text in zip(uris, texts, strict=True):
                file.write(json.dumps({"uri": uri, "caption": text}) + "\n")
    else:
        with open(path, "w", newline="", errors="surrogateescape") as file:
            writer = csv.writer(file, delimiter="," if format_ == "csv" else "\t")
            writer.writerows([("uri", "caption"), *zip(uris, texts, strict=True)])
    flip(path, damage)
    return path


def flip(path, damage):
    """Truncate a file, or overwrite some of its bytes, at a fraction of its length."""
    if damage is None:
        return
    kind, place = damage
    data = bytearray(path.read_bytes())
    at = int(len(data) * place)
    data[at:] = b"" if kind == "cut" else random.Random(at).randbytes(min(40, len(data) - at)) + data[at + 40 :]
    path.write_bytes(data)


samples_of = st.lists(st.tuples(*(st.sampled_from(sorted(kinds)) for kinds in (IMAGES, CAPTIONS, JSONS))), max_size=9)
damages = st.one_of(st.none(), st.tuples(st.sampled_from(["cut", "noise"]), st.floats(0, 0.999)))


@pytest.fixture(scope="module")
def embedder(tiny_checkpoint):
    from clip_transforms.clip.checkpoints import load_checkpoint
    from clip_transforms.engine.forward import Embedder

    return Embedder(load_checkpoint(ClipSpec(tiny_checkpoint, precision="fp32").resolve(), "cpu"), 4)


def run(inputs, output, embedder, checkpoint, captions="first"):
    """Plan, embed and commit without Beam; return the counts of the parts."""
    reader = dataclasses.replace(LIMITS, captions=captions)
    made = Settings(tuple(map(str, inputs)), str(output), ClipSpec(checkpoint), reader=reader)
    job, folder = begin_run(plan_run(made), 1, ())
    try:
        units = [planned.unit for planned in read_units(job, 0, job.units)]
        return [Counter(result.counts) for result in embed_units(units, job, embedder, {}, 1)]
    finally:
        folder.close()


@pytest.mark.timeout(300)
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(format_=st.sampled_from(FORMATS), kinds=samples_of, damage=damages, captions=st.sampled_from(["first", "all"]))
def test_every_modality_of_every_sample_is_in_exactly_one_place(
    format_, kinds, damage, captions, embedder, tiny_checkpoint
):
    samples = [(IMAGES[i], CAPTIONS[c], JSONS[j]) for i, c, j in kinds]
    if format_ == "folder":
        samples = [sample for sample in samples if sample[0] is not None]
    if format_ not in ("tar", "tar.gz") and not samples:
        return
    root = Path(tempfile.mkdtemp())
    try:
        path = write(format_, samples, root, damage)
        if damage and format_ in ("parquet", "listing.parquet", "csv", "tsv", "jsonl"):
            # A file on its own that is no file any more is refused; beside another one it is accounted for.
            (root / "more").mkdir()
            make_parquet(root / "more" / "good.parquet", 1)
        inputs = [path, *([root / "more"] if (root / "more").exists() else [])]
        try:
            counts = run(inputs, root / "out", embedder, tiny_checkpoint, captions)
        except ValueError as error:
            assert damage and format_ in ("csv", "tsv", "jsonl", "listing.parquet"), error  # no header any more
            return
        check_output(root / "out", sum(counts, Counter()))
        if damage is None and format_ not in ("tar", "tar.gz", "folder"):
            assert sum(c["samples"] for c in counts) == len(samples)
        if damage is None:
            total, offered = sum(counts, Counter()), count_sources.count([str(path)])
            assert total["samples"] == offered["samples"]
            if captions == "all":
                assert total["captions.offered"] == offered["captions"]
                offered["caption"] = offered["with_captions"]
            for modality in ("image", "caption"):
                assert total[f"{modality}.embedded"] + total[f"{modality}.rejected"] == offered[modality]
    finally:
        shutil.rmtree(root)


def check_output(out, total):
    """Check by the parts themselves, not by counters, where each modality went."""
    embedded, rejected = rows_of(out), rows_of(out, "rejects")
    places = [(row["shard"], row["row"]) for row in embedded]
    assert len(set(places)) == len(places)
    reasons = [(row["shard"], row["row"], row["modality"]) for row in rejected]
    assert len(set(reasons)) == len(reasons)
    for modality in ("image", "caption"):
        inside = {(r["shard"], r["row"]) for r in embedded if r[f"{modality}_embedding"] is not None}
        outside = {(r["shard"], r["row"]) for r in rejected if r["modality"] == modality}
        assert not inside & outside
        assert len(inside) == total[f"{modality}.embedded"] and len(outside) == total[f"{modality}.rejected"]
        assert total["samples"] == len(inside) + len(outside) + total[f"{modality}.absent"]
    captions = rows_of(out, "captions")
    places = [(row["shard"], row["row"], row["caption_index"]) for row in captions]
    assert len(set(places)) == len(places) == total["captions.embedded"]
    first = {place[:2] for place in places if place[2] == 0}
    with_caption = {(r["shard"], r["row"]) for r in embedded if r["caption_embedding"] is not None}
    assert first == with_caption or "captions.offered" not in total


class ShortReads(io.FileIO):
    """A file that hands out fewer bytes than it is asked for."""

    random = random.Random(0)

    def read(self, size=-1):
        return super().read(size if size < 2 else self.random.randint(1, min(size, 3000)))


class ShortReadsFileSystem(LocalFileSystem):
    """This machine's files as a foreign file system that hands out fewer bytes than it is asked for."""

    def _open(self, path, mode="rb", block_size=None, **kwargs):
        return ShortReads(path)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    format_=st.sampled_from(FORMATS),
    kinds=samples_of.filter(len),
    damage=damages,
    sizes=st.tuples(st.integers(1, 4), st.integers(1, 12)),
    seed=st.integers(0, 1000),
)
def test_batches_cuts_and_the_chunks_of_the_file_system_change_no_row(format_, kinds, damage, sizes, seed):
    from clip_transforms import storage

    samples = [(IMAGES[i], CAPTIONS[c], JSONS[j]) for i, c, j in kinds if format_ != "folder" or IMAGES[i] is not None]
    if not samples:
        return
    root = Path(tempfile.mkdtemp())
    patch = pytest.MonkeyPatch()
    try:
        path = write(format_, samples, root, damage)
        outcomes = [outcome(path, root, sizes[0])]
        outcomes.append(outcome(path, root, sizes[1]))
        patch.setattr(ShortReads, "random", random.Random(seed))
        patch.setattr(storage, "open_input", lambda uri: storage.ResumingFile(ShortReadsFileSystem(), uri, uri))
        outcomes.append(outcome(path, root, sizes[1]))
        patch.setattr(cut_listing, "ROWS_PER_UNIT", 2)
        patch.setattr(cut_listing, "_BYTES_PER_GROUP", 50)
        patch.setattr(cut, "ROWS_PER_PARQUET_UNIT", 3)
        rows, errors, notes = outcome(path, root, sizes[1])
        assert outcomes[0] == outcomes[1] == outcomes[2]
        assert (rows, notes) == (outcomes[0][0], outcomes[0][2]) and bool(errors) == bool(outcomes[0][1])
    finally:
        patch.undo()
        shutil.rmtree(root)


def outcome(path, root, batch_size):
    try:
        rows, notes, errors = read(path, root, LIMITS, batch_size)
    except ValueError as error:
        return str(error), None, None
    return rows, errors, notes


def test_the_independent_count_agrees_with_a_run_over_everything(embed, tmp_path):
    inputs = []
    members = [m for i in range(5) for m in pair(f"{i}", i, json=b'{"caption": "x"}' if i == 2 else None)]
    members += [("9.seg.png", picture(9)), ("9.json", b'{"caption": "only json"}'), ("10.npy", b"1"), ("11.jpg", b"")]
    inputs.append(write_tar(tmp_path / "a.tar", members))
    whole = Path(make_tar(tmp_path / "whole", 6)).read_bytes()
    (tmp_path / "b.tar.gz").write_bytes(gzip.compress(whole))
    inputs.append(tmp_path / "b.tar.gz")
    inputs.append(make_folder(tmp_path / "photos", 4))
    (tmp_path / "photos" / "odd.PNG").write_bytes(b"no png")
    (tmp_path / "photos" / "odd.txt").write_text(" ")
    inputs.append(make_parquet(tmp_path / "c.parquet", 7))
    pq.write_table(
        pa.table({"jpg": [picture(1), None], "caption": ["a", "b"], "status": ["success", "failed_to_download"]}),
        tmp_path / "d.parquet",
    )
    inputs.append(tmp_path / "d.parquet")
    (tmp_path / "l.csv").write_text('path,caption\nphotos/000000.jpg,"a, b"\n,c\nphotos/gone.jpg,\n')
    (tmp_path / "l.jsonl").write_text('{"caption": "alone"}\n{"url": "photos/000001.jpg"}\n')
    inputs += [tmp_path / "l.csv", tmp_path / "l.jsonl"]
    out = tmp_path / "out"
    embed(*inputs, output=out, flags=["--max_reject_fraction", "1"])
    result = read_run(str(out))
    assert result["input"]["samples"] == 33 and count_sources.compare(result, list(map(str, inputs))) == []
    result["input"]["samples"] -= 1
    assert count_sources.compare(result, list(map(str, inputs)))  # and it would have said so


def test_a_damaged_tar_is_counted_up_to_its_damage_by_both(embed, tmp_path):
    whole = Path(make_tar(tmp_path / "whole", 6)).read_bytes()
    place = whole.index(b"000004.jpg")
    (tmp_path / "a.tar").write_bytes(whole[:place])
    embed(tmp_path / "a.tar", output=tmp_path / "out", code=3)
    assert count_sources.compare(read_run(str(tmp_path / "out")), [str(tmp_path / "a.tar")]) == []


def test_the_independent_count_agrees_on_what_tars_and_folders_hold_beside_the_usual(embed, tmp_path):
    names = ["a.jpg", "b.jfif", "c.jpe", "d.pjpeg", "e", "f.JPG_large", "g.jpg~orig", "h.PJP", "i.jp2"]
    members = [
        m for i, name in enumerate(names) for m in ((name, picture(i)), (f"{name.split('.')[0]}.cap", b"a star"))
    ]
    members += [("j.jpg", picture(9)), ("j.json", b'{"cap": "in json"}'), ("k.json", b'{"cap": ["a list"]}')]
    write_tar(tmp_path / "a.tar", members)
    write_tar(tmp_path / "b.tar", [(f"www.site.com_{i}.jpg", picture(i)) for i in range(4)])
    photos = tmp_path / "photos"
    for folder in ("", "_temporary", "@eaDir", "2024/#recycle", "2024", ".git"):
        (photos / folder).mkdir(parents=True, exist_ok=True)
        for name, data in members:
            (photos / folder / name).write_bytes(data)
    features = [{"jpg": picture(i), "cap": f"caption {i}", "txt": "no"} for i in range(5)]
    write_tfrecord(tmp_path / "c.tfrecord", features)
    inputs = [tmp_path / "a.tar", tmp_path / "b.tar", photos]
    flags = ["--max_reject_fraction", "1", "--caption_column", "cap"]
    embed(*inputs, output=tmp_path / "out", flags=flags)
    result = read_run(str(tmp_path / "out"))
    assert result["input"]["samples"] == 11 + 1 + 2 * 7
    assert count_sources.compare(result, list(map(str, inputs)), "cap") == []
    embed(tmp_path / "c.tfrecord", output=tmp_path / "out-2")
    result = read_run(str(tmp_path / "out-2"))
    assert result["input"]["caption.embedded"] == 5
    assert count_sources.compare(result, [str(tmp_path / "c.tfrecord")]) == []
