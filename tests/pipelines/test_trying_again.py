"""What could not be read, and what was rejected, is tried again: by itself, or when asked."""

import errno
import io
import json
import os

import pytest
from conftest import files_of, make_folder, make_parquet, make_tar, pair, rows_of, write_tar
from test_over_time import assert_same_as_new, keys_of, run_of, units_of

from clip_transforms import storage
from clip_transforms.shards import cut, cut_listing


def damaged(path, count=6):
    """A tar cut off in its middle, at the time and size of the whole one; the function mends it."""
    make_tar(path, count)
    whole, stamp = path.read_bytes(), os.stat(path)

    def write(data):
        path.write_bytes(data)
        os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))

    write(whole[: len(whole) // 2].ljust(len(whole), b"\xff"))
    return lambda: write(whole)


def test_a_shard_that_is_readable_the_next_day_is_whole_then(embed, tmp_path):
    out, path = tmp_path / "out", tmp_path / "a.tar"
    mend = damaged(path)
    make_tar(tmp_path / "b.tar", 2, first=30)
    for _ in range(2):  # tried again each time, with the same result
        embed(tmp_path / "*.tar", output=out, code=3)
        assert 0 < len(keys_of(out, "a.tar")) < 6 and not (out / "_SUCCESS").exists()
    assert units_of(out) == (1, 1)
    mend()
    embed(tmp_path / "*.tar", output=out)
    assert len(keys_of(out, "a.tar")) == 6 and (out / "_SUCCESS").exists()
    assert_same_as_new(embed, out, tmp_path / "*.tar")


def test_damaged_shards_can_be_accepted_and_are_tried_again_all_the_same(embed, tmp_path, capsys):
    out, path = tmp_path / "out", tmp_path / "a.tar"
    mend = damaged(path)
    line = "warning: 1 shard could not be read to the end (see rejects/); the samples behind the damage are missing"
    embed(path, output=out, flags=["--allow_damaged_shards"])
    assert (out / "_SUCCESS").exists() and run_of(out)["input"]["shards.rejected"] == 1
    assert line in capsys.readouterr().out.splitlines()
    embed(path, output=out, code=3)
    said = capsys.readouterr().out
    assert said.count("could not be read to the end") == 1 and line not in said, "the problem says it already"
    mend()
    embed(path, output=out, flags=["--allow_damaged_shards"])
    assert units_of(out) == (1, 0) and len(rows_of(out)) == 6
    assert "could not be read" not in capsys.readouterr().out


@pytest.fixture
def forbidden(monkeypatch):
    """Names of files that cannot be read, while they are in this set."""
    names, original = set(), storage.open_input

    def open_input(uri):
        if os.path.basename(uri) in names:
            raise PermissionError(13, "Permission denied", uri)
        return original(uri)

    monkeypatch.setattr(storage, "open_input", open_input)
    return names


def test_rejects_of_reading_are_tried_again_when_asked(embed, tmp_path, forbidden):
    photos, out, lenient = tmp_path / "photos", tmp_path / "out", ["--max_reject_fraction", 1]
    make_folder(photos, 5)
    make_tar(tmp_path / "a.tar", 3, first=30)
    inputs = [photos, tmp_path / "a.tar"]
    forbidden |= {"000002.jpg", "000003.txt"}
    embed(*inputs, output=out, flags=lenient)
    assert [(r["key"], r["modality"], r["reason"]) for r in rows_of(out, "rejects")] == [
        ("000002.jpg", "image", "unreadable"),
        ("000003.jpg", "caption", "unreadable"),
    ]
    forbidden.clear()
    embed(*inputs, output=out, flags=lenient)
    assert units_of(out) == (0, 2), "unasked"
    embed(*inputs, output=out, flags=["--retry_rejects"])
    assert units_of(out) == (1, 1) and rows_of(out, "rejects") == []
    assert_same_as_new(embed, out, *inputs)
    embed(*inputs, output=out, flags=["--retry_rejects"])
    assert units_of(out) == (0, 2), "nothing is left to try"


@pytest.mark.parametrize("flag, again", [([], 0), (["--retry_rejects"], 0), (["--retry_rejects", "all"], 1)])
def test_rejects_of_decoding_are_tried_again_only_with_all(flag, again, embed, tmp_path):
    out, lenient = tmp_path / "out", ["--max_reject_fraction", 1]
    write_tar(tmp_path / "a.tar", pair("a", 0, jpg=b"broken") + pair("b", 1))
    make_tar(tmp_path / "b.tar", 2, first=20)
    embed(tmp_path / "*.tar", output=out, flags=lenient)
    before = files_of(out)
    embed(tmp_path / "*.tar", output=out, flags=[*lenient, *flag])
    assert units_of(out) == (again, 2 - again) and files_of(out) == before


def test_a_dry_run_says_what_would_be_tried_again(embed, tmp_path, capsys):
    write_tar(tmp_path / "a.tar", pair("a", 0, caption=b"\xff") + pair("b", 1))
    embed(tmp_path / "a.tar", output=tmp_path / "out", code=3)
    capsys.readouterr()
    embed(tmp_path / "a.tar", output=tmp_path / "out", flags=["--dry_run", "--retry_rejects"])
    assert "1 to embed" in capsys.readouterr().out


def test_retrying_is_no_setting_of_the_dataset():
    import dataclasses

    from clip_transforms import ClipSpec
    from clip_transforms.run.settings import Settings

    settings = Settings(("x",), "out", ClipSpec("demo"))
    fields = [dataclasses.replace(settings, retry_rejects=word) for word in ("", "read", "all")]
    checkpoint = settings.model.resolve()
    assert len({json.dumps(s.fingerprint_fields(checkpoint)) for s in fields}) == 1
    with pytest.raises(ValueError, match="--retry_rejects is 'decode', but it must be read or all"):
        dataclasses.replace(settings, retry_rejects="decode")


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_what_storage_does_not_give_today_keeps_its_parts(kind, embed, tmp_path, monkeypatch):
    """The source is the same; a file that could not be read when it was cut is no file that is cut anew."""
    out, good = tmp_path / "out", tmp_path / "good"
    good.mkdir()
    if kind == "parquet":
        monkeypatch.setattr(cut, "ROWS_PER_PARQUET_UNIT", 5)
        inputs = [make_parquet(tmp_path / "a.parquet", 12), make_parquet(good / "b.parquet", 3, first=20)]
    else:
        monkeypatch.setattr(cut_listing, "ROWS_PER_UNIT", 5)
        (tmp_path / "a.jsonl").write_text("".join(f'{{"caption": "number {i}"}}\n' for i in range(12)))
        inputs = [str(tmp_path / "a.jsonl")]
    embed(*inputs, output=out)
    before, rows = files_of(out), rows_of(out)

    class Failing(io.FileIO):
        def read(self, size=-1):
            if kind == "jsonl" and self.tell() == 0:
                return super().read(150)  # some rows, and then no more
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        opened = storage.open_input
        patch.setattr(storage, "open_input", lambda uri: Failing(uri) if uri == inputs[0] else opened(uri))
        embed(*inputs, output=out, code=3)
    assert [row["reason"] for row in rows_of(out, "rejects")] == ["unreadable"]
    if kind == "parquet":
        assert rows_of(out) == rows
    else:  # the unit that it breaks off in has what was read of it
        assert [row["row"] for row in rows_of(out)] == [0, 1, 2, 3, 4, 5, 10, 11]
    embed(*inputs, output=out)
    assert files_of(out) == before and units_of(out)[0] == (0 if kind == "parquet" else 1)
