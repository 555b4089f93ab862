"""Data over a limit is a reject with its own reason, and is not read if its size is known before."""

import io
import tarfile
import tracemalloc
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import pair, picture, rows_of, write_tar
from reading import read

from clip_transforms.shards.inventory import take_inventory
from clip_transforms.shards.read_unit import read_unit
from clip_transforms.shards.unit import ReaderOptions
from schemas.samples import Column

LIMITS = ReaderOptions(max_image_bytes=1000, max_caption_bytes=20)


def write_folder(tmp_path, image, caption):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jpg").write_bytes(image)
    (tmp_path / "in" / "a.txt").write_bytes(caption)
    return tmp_path / "in"


def write_parquet(tmp_path, image, caption):
    pq.write_table(pa.table({"image": [image], "caption": [caption.decode()]}), tmp_path / "in.parquet")
    return tmp_path / "in.parquet"


def write_struct(tmp_path, image, caption):
    column = pa.array([{"bytes": image, "path": "a.jpg"}])
    pq.write_table(pa.table({"image": column, "caption": [caption.decode()]}), tmp_path / "in.parquet")
    return tmp_path / "in.parquet"


LAYOUTS = {
    "tar": lambda tmp_path, image, caption: write_tar(tmp_path / "in.tar", [("a.jpg", image), ("a.txt", caption)]),
    "folder": write_folder,
    "parquet": write_parquet,
    "struct": write_struct,
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("over", [0, 1])
def test_one_byte_decides(layout, over, tmp_path):
    rows, _, errors = read(LAYOUTS[layout](tmp_path, b"x" * (1000 + over), b"c" * (20 + over)), tmp_path, LIMITS)
    (row,) = rows
    assert not errors
    if not over:
        assert (row["image"], row["caption"]) == (b"x" * 1000, "c" * 20)
        assert row["image_reject"] is None and row["caption_reject"] is None
    else:
        assert (row["image"], row["caption"]) == (None, None)
        assert row["image_reject"]["reason"] == "image too large"
        assert row["caption_reject"]["reason"] == "caption too large"
        assert "--max_image_bytes takes at most 1,000" in row["image_reject"]["message"]
        assert row["image_reject"]["num_bytes"] in (1001, None)


def test_captions_in_json_are_measured_in_utf8(tmp_path):
    members = [("a.json", '{"caption": "üüüüüüüüüü"}'.encode()), ("b.json", '{"caption": "üüüüüüüüüüx"}'.encode())]
    first, second = read(write_tar(tmp_path / "a.tar", members), tmp_path, LIMITS)[0]
    assert first["caption"] == "ü" * 10
    assert second["caption_reject"] == {
        "reason": "caption too large",
        "message": "21 bytes, but --max_caption_bytes takes at most 20",
        "num_bytes": 21,
    }


def huge_member(path, name, size):
    """A tar with a member of `size` bytes, all zero, which is a hole in the file."""
    with open(path, "wb") as file:
        info = tarfile.TarInfo(name)
        info.size = size
        file.write(info.tobuf())
        file.seek(-(-size // 512) * 512, 1)
        for name, data in pair("b", 1):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.write(info.tobuf() + data + b"\0" * (-len(data) % 512))
        file.write(b"\0" * 1024)
    return str(path)


@pytest.mark.parametrize("name", ["a.jpg", "a.txt", "a.json", "a.npy"])
def test_a_member_over_its_limit_is_passed_over_and_not_read(name, tmp_path):
    path = huge_member(tmp_path / "a.tar", name, 300 << 20)
    tracemalloc.start()
    try:
        rows, notes, errors = read(path, tmp_path, ReaderOptions())
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 30 << 20
    assert not errors and [row["key"] for row in rows] == ["a", "b"] and rows[1]["image"] == picture(1)
    rejects = [rows[0][f"{m}_reject"] and rows[0][f"{m}_reject"]["reason"] for m in ("image", "caption")]
    assert rejects == {"a.jpg": ["image too large", None], "a.txt": [None, "caption too large"]}.get(name, [None, None])
    assert list(notes) == {
        "a.json": ["JSON files and members of more than 16 MiB, which were not read"],
        "a.npy": [".npy members that were not read"],
    }.get(name, [])


def test_a_file_over_its_limit_is_not_read_whole(tmp_path):
    folder = write_folder(tmp_path, b"", b"")
    for name in ("a.jpg", "a.txt", "a.json"):
        with open(folder / name, "wb") as file:
            file.truncate(300 << 20)
    tracemalloc.start()
    try:
        (row,), notes, _ = read(folder, tmp_path, ReaderOptions(columns=(Column("x", "x"),)))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 150 << 20  # the limit of an image, once more while its pieces are joined
    assert row["image_reject"]["reason"] == "image too large"
    assert row["caption_reject"]["reason"] == "caption too large"
    assert notes == {"JSON files and members of more than 16 MiB, which were not read": 1}


def test_ten_thousand_members_of_one_key_do_not_pile_up(tmp_path):
    body = b"x" * 10_000
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for extension in ("jpg", "seg.png", "txt", "json"):
            info = tarfile.TarInfo(f"a.{extension}")
            info.size = len(body)
            for _ in range(2_500):
                tar.addfile(info, io.BytesIO(body))
    tracemalloc.start()
    try:
        (row,), _, errors = read(tmp_path / "a.tar", tmp_path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert not errors and peak < 5 << 20
    assert row["image_reject"]["reason"] == "several images" and row["image_reject"]["num_bytes"] == 25_000_000
    assert row["image_reject"]["message"].startswith(
        "2,500 images under the key 'a' (.jpg, .jpg, .jpg, .jpg, .jpg and 2,495"
    )
    assert row["caption"] == "x" * 10_000


def test_the_flags_reach_the_run_and_are_part_of_the_fingerprint(embed, tmp_path):
    big = picture(3, size=(400, 300))
    members = [*pair("a", 0), ("b.jpg", big), ("b.txt", b"a caption of some length")]
    path = write_tar(tmp_path / "a.tar", members)
    flags = ["--max_image_bytes", len(big) - 1, "--max_caption_bytes", 20]
    out = tmp_path / "out"
    embed(path, output=out, flags=flags, code=3)
    rejects = {(row["key"], row["modality"]): (row["stage"], row["reason"]) for row in rows_of(out, "rejects")}
    assert rejects == {("b", "image"): ("read", "image too large"), ("b", "caption"): ("read", "caption too large")}
    with pytest.raises(ValueError, match="--max_caption_bytes was '20', but is now '16384'"):
        embed(path, output=out)
    embed(path, output=tmp_path / "pixels", flags=["--max_image_pixels", 400 * 300 - 1], code=3)
    (reject,) = rows_of(tmp_path / "pixels", "rejects")
    assert (reject["key"], reject["stage"], reject["reason"]) == ("b", "decode", "too many pixels")
    embed(path, output=tmp_path / "more", flags=["--max_image_pixels", 400 * 300])


def test_pixels_beyond_pillows_own_limit_are_taken_when_they_are_asked_for(embed, tmp_path, monkeypatch):
    import PIL.Image

    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 89_478_485)
    side = 13_500  # 182 million pixels: more than twice Pillow's limit, where it raises by itself
    buffer = io.BytesIO()
    PIL.Image.new("1", (side, side)).save(buffer, "PNG")
    path = write_tar(tmp_path / "a.tar", [("a.png", buffer.getvalue())])
    embed(path, output=tmp_path / "out", code=3)
    assert rows_of(tmp_path / "out", "rejects")[0]["reason"] == "too many pixels"
    embed(path, output=tmp_path / "more", flags=["--max_image_pixels", side**2])
    assert rows_of(tmp_path / "more")[0]["width"] == side


def test_a_parquet_file_of_large_pictures_is_read_in_small_batches(tmp_path):
    images = [bytes([i]) * (3 << 20) for i in range(12)]
    pq.write_table(pa.table({"image": images}), tmp_path / "a.parquet", compression="none", use_dictionary=False)
    plan = take_inventory([str(tmp_path / "a.parquet")], ReaderOptions())
    batches = list(read_unit(plan.units[0], ReaderOptions(), 256, Counter(), ""))
    assert [batch.num_rows for batch in batches] == [5, 5, 2]
    assert [image for batch in batches for image in batch.column("image").to_pylist()] == images
