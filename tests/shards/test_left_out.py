"""What lies in a folder and is not a sample: leftovers, service folders, --exclude, folders that cannot be listed."""

import bz2
import lzma
import os
import re
import tempfile
import unicodedata
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import ROOT, make_folder, make_parquet, make_tar, picture
from forked import run
from reading import read

from clip_transforms import storage
from clip_transforms.shards.inventory import take_inventory
from clip_transforms.shards.unit import PlanError, ReaderOptions


def plan(*inputs, **options):
    return take_inventory([str(i) for i in inputs], ReaderOptions(**options))


def keys(path, tmp_path, **options):
    return [row["key"] for row in read(path, tmp_path, ReaderOptions(**options))[0]]


@pytest.mark.parametrize("name", ["_temporary", "@eaDir", "#recycle", "$RECYCLE.BIN", "$Recycle.Bin", "lost+found"])
def test_a_service_folder_is_skipped_and_named(name, tmp_path):
    make_folder(tmp_path / "photos" / "2024", 2)
    make_folder(tmp_path / "photos" / "2024" / name / "deep", 3)
    found = plan(tmp_path / "photos")
    assert found.detection == [f"{tmp_path}/photos: a folder of 2 pictures; skipped folders: 1 {name}"]
    assert [unit.stop for unit in found.units] == [2]
    assert len(keys(tmp_path / "photos" / "2024" / name, tmp_path)) == 3  # it can be given itself


def test_a_folder_whose_name_only_resembles_one_is_read(tmp_path):
    for name in ("a_temporary", "eaDir", "recycle", "found", "#1", "$x"):
        make_folder(tmp_path / "photos" / name, 1)
    assert len(keys(tmp_path / "photos", tmp_path)) == 6


def test_what_a_failed_attempt_of_spark_left_is_not_read(tmp_path):
    out = tmp_path / "out"
    attempt = out / "_temporary" / "0" / "attempt_0"
    attempt.mkdir(parents=True)
    for i in range(2):
        make_parquet(out / f"part-{i}.parquet", 5, first=5 * i)
    make_parquet(attempt / "part-0.parquet", 5)
    (out / "_SUCCESS").touch()
    for pattern in ("", "**/*.parquet"):
        assert keys(out / pattern, tmp_path) == [f"{i:06d}" for i in range(10)]
    assert plan(out / "_temporary").units[0].format == "parquet"
    assert keys(out / "_temporary" / "**" / "*.parquet", tmp_path) == [f"{i:06d}" for i in range(5)]
    assert len(keys(out / "_*" / "0" / "*" / "*.parquet", tmp_path)) == 5  # the glob names it


def test_the_same_on_another_file_system(tmp_path):
    memory = fsspec.filesystem("memory")
    try:
        for i, name in enumerate(("a.jpg", "_delta_log/b.jpg", "x/@eaDir/c.jpg", "x/d.jpg")):
            memory.pipe(f"/left/{name}", picture(i))
        found = plan("memory://left")
        line = "memory:///left: a folder of 2 pictures; skipped folders: 1 @eaDir, 1 _delta_log"
        assert found.detection == [line] and found.units[0].stop == 2
    finally:
        memory.rm("/left", recursive=True)


def test_a_folder_of_service_folders_alone_says_so(tmp_path):
    make_folder(tmp_path / "photos" / "_old", 2)
    with pytest.raises(
        PlanError, match="holds nothing that is not left out; skipped folders: 1 _old; give such a fold"
    ):
        plan(tmp_path / "photos")
    assert len(keys(tmp_path / "photos" / "_old", tmp_path)) == 2


EXCLUDES = {
    "a name at any depth": (("*_thumb.jpg",), ["a.jpg", "new/a.jpg", "old/a.jpg", "old/deep/a.jpg"]),
    "a folder": (("old",), ["a.jpg", "a_thumb.jpg", "new/a.jpg"]),
    "a path": (("old/deep",), ["a.jpg", "a_thumb.jpg", "new/a.jpg", "old/a.jpg", "old/b_thumb.jpg"]),
    "a path with a wildcard": (("old/*.jpg",), ["a.jpg", "a_thumb.jpg", "new/a.jpg", "old/deep/a.jpg"]),
    "any depth below a path": (("old/**/*.jpg",), ["a.jpg", "a_thumb.jpg", "new/a.jpg"]),
    "two": (("old/", "*_thumb*"), ["a.jpg", "new/a.jpg"]),
    "no part of a name": (("thumb", "ol", "a"), "all"),
}


@pytest.mark.parametrize("case", EXCLUDES)
def test_exclude_leaves_out_names_and_paths(case, tmp_path):
    patterns, left = EXCLUDES[case]
    every = ["a.jpg", "a_thumb.jpg", "new/a.jpg", "old/a.jpg", "old/b_thumb.jpg", "old/deep/a.jpg"]
    for i, name in enumerate(every):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / name).write_bytes(picture(i))
    assert keys(tmp_path / "photos", tmp_path, exclude=patterns) == (every if left == "all" else left)
    for pattern in ("**", "**/*.jpg"):
        assert keys(tmp_path / "photos" / pattern, tmp_path, exclude=patterns) == (every if left == "all" else left)


def test_what_exclude_leaves_out_is_counted_and_part_of_the_stamp(tmp_path):
    make_folder(tmp_path, 3)
    before = plan(tmp_path).units[0]
    found = plan(tmp_path, exclude=("000001*", "nothing"))
    assert found.detection == [
        f"{tmp_path}: a folder of 2 pictures; excluded: 2",
        "warning: --exclude nothing matches nothing",
    ]
    assert found.units[0].part == before.part and found.units[0].stamp != before.stamp
    assert plan(tmp_path, exclude=("nothing",)).units == [before]
    assert plan(tmp_path, exclude=("000001.txt",)).units[0].stamp != before.stamp


def test_exclude_names_shards_too(tmp_path):
    for i in range(3):
        make_tar(tmp_path / f"{i}.tar", 1)
    assert [os.path.basename(unit.shard) for unit in plan(tmp_path, exclude=("1.tar",)).units] == ["0.tar", "2.tar"]


@pytest.mark.parametrize("pattern", ["", "/", "a**b"])
def test_an_exclude_that_is_no_glob_is_refused(pattern):
    with pytest.raises(ValueError, match=re.escape(f"--exclude is {pattern!r}, but it must be a glob")):
        ReaderOptions(exclude=(pattern,))


def test_an_exclude_that_leaves_nothing_is_refused(tmp_path):
    make_folder(tmp_path, 3)
    with pytest.raises(PlanError, match="holds nothing that is not left out; excluded: 6; .* or omit --exclude"):
        plan(tmp_path, exclude=("0*",))


# Two kinds in one folder.


def test_one_stray_tar_among_pictures_is_refused_with_both_counts(tmp_path):
    make_folder(tmp_path, 7)
    make_tar(tmp_path / "backup.tar", 2)
    with pytest.raises(PlanError) as caught:
        plan(tmp_path)
    assert "holds 7 pictures (000000.jpg, …) beside 1 webdataset shard (backup.tar)" in str(caught.value)
    assert plan(tmp_path, exclude=("backup.tar",)).units[0].stop == 7
    assert plan(tmp_path, input_format="folder").units[0].stop == 7


def test_pictures_beside_image_parquet_are_refused(tmp_path):
    make_folder(tmp_path / "assets", 1)
    make_parquet(tmp_path / "train.parquet", 2)
    with pytest.raises(PlanError, match=re.escape("1 picture (000000.jpg) beside 1 parquet shard (train.parquet)")):
        plan(tmp_path)
    assert {unit.format for unit in plan(tmp_path, input_format="parquet").units} == {"parquet"}
    assert {unit.format for unit in plan(tmp_path, exclude=("assets",)).units} == {"parquet"}


def test_pictures_without_an_extension_count_too(tmp_path):
    (tmp_path / "a").write_bytes(picture(0))
    make_tar(tmp_path / "a.tar", 1)
    with pytest.raises(PlanError, match=re.escape("1 picture (a) beside")):
        plan(tmp_path)


def test_pictures_in_a_folder_of_a_shards_name_belong_to_it(tmp_path):
    make_tar(tmp_path / "00000.tar", 2)
    make_folder(tmp_path / "00000" / "deep", 2)  # the tar, unpacked
    found = plan(tmp_path)
    assert [unit.format for unit in found.units] == ["webdataset"] and "2 pictures" in found.detection[0]
    make_folder(tmp_path / "00001", 2)
    with pytest.raises(PlanError, match="holds 2 pictures"):
        plan(tmp_path)


def test_parquet_without_images_beside_pictures_stays_a_sidecar(tmp_path):
    make_folder(tmp_path / "00000", 2)
    pq.write_table(pa.table({"url": ["x"]}), tmp_path / "00000.parquet")
    assert plan(tmp_path).detection == [f"{tmp_path}: a folder of 2 pictures; not read: 1 sidecar Parquet"]


def test_a_pipe_in_a_folder_is_named(tmp_path):
    make_folder(tmp_path, 1)
    os.mkfifo(tmp_path / "pipe.jpg")
    assert plan(tmp_path).detection == [f"{tmp_path}: a folder of 1 picture; not read: 1 pipe, socket or device"]


# Names of pictures.


@pytest.mark.parametrize("name", ["a.jfif", "a.JFIF", "a.jpe", "a.pjpeg", "a.pjp", "a.JPEG", "a", "0af3"])
def test_a_picture_by_any_of_these_names_is_a_sample(name, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / name).write_bytes(picture(0))
    (tmp_path / "photos" / f"{name.split('.')[0]}.txt").write_text("a red star")
    (tmp_path / "photos" / "README").write_text("words")
    (tmp_path / "photos" / "_SUCCESS").touch()
    for pattern in ("", "*", name):
        ((row,), _, _) = read(tmp_path / "photos" / pattern, tmp_path)
        assert (row["key"], row["image"], row["caption"]) == (name, picture(0), "a red star")
    assert "not read: 2 no extension" in plan(tmp_path / "photos").detection[0]


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
def test_every_format_is_known_by_its_first_bytes(format_, tmp_path):
    (tmp_path / "photos.d").mkdir()
    (tmp_path / "photos.d" / "a").write_bytes(picture(0, format_=format_))
    assert keys(tmp_path / "photos.d", tmp_path) == ["a"]


def test_two_files_without_an_extension_that_were_named_one_by_one_are_another_source(tmp_path):
    for i, name in enumerate("abc"):
        (tmp_path / name).write_bytes(picture(i))
    first, second = (plan(*(tmp_path / name for name in names)).units[0] for names in ("ab", "bc"))
    assert first.shard != second.shard and first.stop == second.stop == 2


# Folders that cannot be listed, and looking no further than what was named.


AS_NOBODY = """
import os, sys
from clip_transforms import ClipSpec, embed_shards

def run(source, output):
    return embed_shards([source], output, ClipSpec("demo"), max_reject_fraction=1.0, retry_rejects="read")

run(sys.argv[1], sys.argv[2])  # imports everything, which the other user may not be allowed to
os.setgid(65534)
os.setuid(65534)
result = run(sys.argv[3], sys.argv[4])
print(result["complete"], result["input"]["samples"], result["input"].get("image.embedded", 0))
"""


def as_nobody(tmp_path, source, output):
    """Embed a folder as another user, who owns nothing; return what the child printed."""
    warm = make_folder(tmp_path / "warm", 1)
    done = run("-c", AS_NOBODY, warm, tmp_path / "warm-out", source, output, timeout=200, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout.split("\n")[-2]


@pytest.mark.skipif(os.getuid() != 0, reason="only root may become another user")
@pytest.mark.timeout(300)
def test_a_folder_that_cannot_be_listed_is_a_reject_and_the_rest_is_embedded():
    with tempfile.TemporaryDirectory() as name:  # not below pytest's folders, which others may not enter
        tmp_path = Path(name)
        tmp_path.chmod(0o755)
        photos, secret, out = tmp_path / "photos", tmp_path / "photos" / "secret", tmp_path / "out"
        make_folder(photos, 3)
        make_folder(secret, 2)
        (photos / "000001.jpg").chmod(0o600)  # a picture of somebody else
        secret.chmod(0o700)
        out.mkdir()
        out.chmod(0o777)
        assert as_nobody(tmp_path, photos, out) == "False 3 2"
        assert [(row["modality"], row["reason"], row["shard"]) for row in rejects(out)] == [
            ("image", "unreadable", f"{photos}#"),
            ("shard", "unreadable", str(secret)),
        ]
        secret.chmod(0o755)
        (photos / "000001.jpg").chmod(0o644)
        assert as_nobody(tmp_path, photos, out) == "True 5 5"
        assert rejects(out) == [] and len(list((out / "embeddings").glob("*.parquet"))) == 1


def rejects(out):
    rows = [row for path in sorted((out / "rejects").glob("*.parquet")) for row in pq.read_table(path).to_pylist()]
    return sorted(rows, key=lambda row: row["modality"])


@pytest.fixture
def unlistable(tmp_path, monkeypatch):
    """A folder `photos/secret` that refuses to be listed, whoever asks."""
    scandir, listdir = os.scandir, os.listdir

    def refused(ask):
        def listed(path="."):
            if str(path).endswith("/secret"):
                raise PermissionError(13, "Permission denied", str(path))
            return ask(path)

        return listed

    make_folder(tmp_path / "photos" / "secret", 2)
    make_folder(tmp_path / "photos", 3)
    monkeypatch.setattr(os, "scandir", refused(scandir))
    monkeypatch.setattr(os, "listdir", refused(listdir))
    return tmp_path / "photos"


@pytest.mark.parametrize("pattern", ["", "**/*.jpg", "*/*.jpg"])
def test_a_folder_that_cannot_be_listed_is_a_unit_that_becomes_a_reject(pattern, unlistable, tmp_path):
    make_folder(unlistable / "sub", 3)
    found = plan(unlistable / pattern)
    assert [(unit.format, unit.shard) for unit in found.units][1:] == [("unlisted", f"{unlistable}/secret")]
    assert found.detection[1].startswith(f"warning: {unlistable}/secret will be a reject: it cannot be listed")
    rows, _, errors = read(unlistable / pattern, tmp_path)
    assert len(rows) == (3 if pattern == "*/*.jpg" else 6) and [reason for reason, _ in errors] == ["unreadable"]
    assert len(plan(unlistable / pattern, exclude=("secret",)).units) == 1


def test_pictures_that_are_named_are_read_though_their_folder_cannot_be_listed(unlistable, tmp_path):
    (row,), _, errors = read(unlistable / "secret" / "000001.jpg", tmp_path)
    assert (row["key"], row["caption"]) == ("000001.jpg", "picture number 1") and not errors


def test_only_what_is_named_is_looked_at(tmp_path, monkeypatch):
    make_folder(tmp_path / "photos", 3)
    make_folder(tmp_path / "photos" / "more", 3)
    looked = []
    for name in ("scandir", "listdir"):
        ask = getattr(os, name)
        monkeypatch.setattr(os, name, lambda path=".", ask=ask: looked.append(str(path)) or ask(path))
    rows, _, _ = read(tmp_path / "photos" / "000001.jpg", tmp_path)
    assert [(row["key"], row["caption"]) for row in rows] == [("000001.jpg", "picture number 1")] and looked == []
    rows, _, _ = read(tmp_path / "photos" / "*.jpg", tmp_path)
    assert [row["caption"] for row in rows] == [f"picture number {i}" for i in range(3)]
    assert set(looked) == {f"{tmp_path}/photos"}


def test_one_object_of_a_bucket_is_not_worth_a_listing(monkeypatch):
    memory = fsspec.filesystem("memory")
    try:
        for i in range(3):
            memory.pipe(f"/bucket/{i}.jpg", picture(i))
            memory.pipe(f"/bucket/{i}.TXT", b"a cat")
        for ask in ("ls", "find", "glob", "walk"):
            monkeypatch.setattr(type(memory), ask, lambda *args, **kwargs: pytest.fail("listed"))
        (unit,) = plan("memory://bucket/1.jpg").units
        assert unit.num_bytes == len(picture(1)) + len(b"a cat")
    finally:
        monkeypatch.undo()
        memory.rm("/bucket", recursive=True)


def test_many_named_pictures_find_their_captions_by_one_listing(tmp_path):
    for i in range(120):
        (tmp_path / f"{i:03d}.jpg").write_bytes(b"1")
        (tmp_path / f"{i:03d}.txt").write_text(f"caption {i}")
    rows, _, _ = read(tmp_path / "*.jpg", tmp_path)
    assert [row["caption"] for row in rows] == [f"caption {i}" for i in range(120)]


def test_a_broken_link_among_the_matches_of_a_glob_is_a_reject(tmp_path):
    make_folder(tmp_path / "in", 1)
    (tmp_path / "in" / "gone.jpg").symlink_to(tmp_path / "nowhere")
    (tmp_path / "in" / "loop.jpg").symlink_to("loop.jpg")
    rows, _, _ = read(tmp_path / "in" / "*.jpg", tmp_path)
    assert [(row["key"], row["image_reject"] and row["image_reject"]["reason"]) for row in rows] == [
        ("000000.jpg", None),
        ("gone.jpg", "vanished"),
        ("loop.jpg", "unreadable"),
    ]


@pytest.mark.parametrize("spelling", ["NFC", "NFD"])
def test_a_caption_is_found_in_the_other_spelling_of_unicode(spelling, tmp_path):
    other = {"NFC": "NFD", "NFD": "NFC"}[spelling]
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / f"{unicodedata.normalize(spelling, 'garçon')}.jpg").write_bytes(b"1")
    (tmp_path / "in" / f"{unicodedata.normalize(other, 'garçon')}.txt").write_text("a boy")
    for pattern in ("", "*.jpg"):
        ((row,), _, _) = read(tmp_path / "in" / pattern, tmp_path)
        assert row["caption"] == "a boy"


def test_names_that_uris_globs_and_shells_read_otherwise(tmp_path):
    folder = tmp_path / "my photos #1 [2024] 100%25 a=b?"
    folder.mkdir()
    names = ["a b", "c#d", "e%20f", "g?h", "i[1]", "j{1,2}", "k::l", "m=n", "q\nr", "~s", "-t", "$HOME", "u\\v", "y'z"]
    for i, name in enumerate(names):
        (folder / f"{name}.jpg").write_bytes(picture(i))
        (folder / f"{name}.txt").write_text(name)
    for pattern in (folder, folder / "*.jpg"):
        rows, _, _ = read(pattern, tmp_path)
        assert sorted(row["caption"] for row in rows) == sorted(names)
    for name in names:
        ((row,), _, _) = read(folder / f"{name}.jpg", tmp_path)
        assert row["caption"] == name.strip()


def test_a_wildcard_matches_links_to_folders(tmp_path):
    make_folder(tmp_path / "store" / "x", 2)
    (tmp_path / "photos").mkdir()
    make_folder(tmp_path / "photos" / "own", 1)
    (tmp_path / "photos" / "linked").symlink_to(tmp_path / "store" / "x")
    (tmp_path / "photos" / "loop").symlink_to(tmp_path / "photos")
    assert keys(tmp_path / "photos" / "*" / "*.jpg", tmp_path) == [
        *("linked/000000.jpg", "linked/000001.jpg", "own/000000.jpg")
    ]
    found = storage.list_matching(f"{tmp_path}/photos/**/*.jpg")
    assert [file.uri.removeprefix(f"{tmp_path}/photos/") for file in found.files] == [
        *("linked/000000.jpg", "linked/000001.jpg", "own/000000.jpg")
    ]


def test_a_wildcard_matches_no_hidden_and_no_service_folder_unless_it_names_them(tmp_path):
    for name in (".git", "_old", "@eaDir", "good", "__MACOSX"):
        make_folder(tmp_path / "in" / name, 1)
    assert [unit.shard for unit in plan(tmp_path / "in" / "*").units] == [f"{tmp_path}/in/good#"]
    assert [unit.shard for unit in plan(tmp_path / "in" / "_*").units] == [f"{tmp_path}/in/_old#"]
    lines = plan(tmp_path / "in" / "*").detection
    assert lines[0] == f"{tmp_path}/in/*: nothing to read; skipped folders: 1 @eaDir, 1 _old"


def test_nameless_files_that_links_with_names_lead_to_are_read_once(tmp_path):
    """Hugging Face's cache is laid out so."""
    blobs, snapshot = tmp_path / "cache" / "blobs", tmp_path / "cache" / "snapshots" / "main"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for i in range(3):
        (blobs / f"{i:040x}").write_bytes(picture(i))
        if i:
            (snapshot / f"{i}.jpg").symlink_to(f"../../blobs/{i:040x}")
    for folder in (tmp_path / "cache", tmp_path / "cache" / "**"):
        assert keys(folder, tmp_path) == [f"blobs/{0:040x}", "snapshots/main/1.jpg", "snapshots/main/2.jpg"]


def test_a_listing_beside_pictures_without_captions_is_said_to_be_one(tmp_path):
    for i in range(2):
        (tmp_path / f"{i}.jpg").write_bytes(picture(i))
    (tmp_path / "metadata.csv").write_text("file_name,text\n0.jpg,a cat\n1.jpg,a dog\n")
    assert plan(tmp_path).detection == [
        f"{tmp_path}: a folder of 2 pictures; not read: 1 listing (--input_format listing)",
        "note: 1 listing (metadata.csv) lies beside the pictures; if the captions are there, with paths that begin in "
        "that folder, --input_format listing reads them with their pictures",
    ]
    rows, _, _ = read(tmp_path, tmp_path, ReaderOptions(input_format="listing"))
    assert [(row["image"] is not None, row["caption"]) for row in rows] == [(True, "a cat"), (True, "a dog")]
    (tmp_path / "0.txt").write_text("a cat")
    assert len(plan(tmp_path).detection) == 1


def test_a_delta_table_is_said_to_be_one(tmp_path):
    make_parquet(tmp_path / "part-0.parquet", 2)
    (tmp_path / "_delta_log").mkdir()
    make_parquet(tmp_path / "_delta_log" / "checkpoint.parquet", 2)
    line, warning = plan(tmp_path).detection
    assert line.endswith("1 Parquet shard with images; skipped folders: 1 _delta_log")
    assert warning.startswith(f"warning: {tmp_path} is a Delta table; all of its Parquet files are read")


@pytest.mark.parametrize(
    "suffix, opener",
    [(".tar.bz2", bz2), (".tbz2", bz2), (".tar.xz", lzma), (".TXZ", lzma)],
    ids=lambda value: str(value)[:8],
)
def test_tars_in_other_compressions_are_shards(suffix, opener, tmp_path):
    whole = Path(make_tar(tmp_path / "whole", 2)).read_bytes()
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / f"a{suffix}").write_bytes(opener.compress(whole))
    assert keys(tmp_path / "in", tmp_path) == ["000000", "000001"]
    assert plan(tmp_path / "in").detection == [f"{tmp_path}/in: 1 webdataset shard"]


def test_captions_that_nobody_may_ask_for_are_absent(monkeypatch):
    """S3 says 403, not 404, of what is not there to who may not list the bucket."""
    memory = fsspec.filesystem("memory")
    info = type(memory).info

    def refused(self, path, **kwargs):
        if not path.endswith(".jpg"):
            raise PermissionError(path)
        return info(self, path, **kwargs)

    try:
        memory.pipe("/bucket/1.jpg", picture(0))
        monkeypatch.setattr(type(memory), "info", refused)
        (unit,) = plan("memory://bucket/1.jpg").units
        assert unit.num_bytes == len(picture(0))
    finally:
        monkeypatch.undo()
        memory.rm("/bucket", recursive=True)
