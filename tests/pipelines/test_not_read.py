"""What lies in an input and is not read is named at the end of a run too, for who reads only the last lines."""

import json
import os

import count_sources
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import make_folder, make_parquet, make_tar, pair, picture, write_tar

SIDECAR = pa.table({"url": ["http://x/a.jpg"], "key": ["a"], "caption": ["c"]})


def add(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")


def zst_beside_a_tar(folder):
    make_tar(folder / "0.tar", 1)
    add(folder, "1.tar.lz4", "2.zip", "3.zip", "0.tar.idx")
    return "2 .zip (2.zip, …), 1 .idx (0.tar.idx), 1 .lz4 (1.tar.lz4)"


def captions_of_flickr8k(folder):
    make_folder(folder / "Images", 2)
    add(folder, "captions.txt")
    return "1 text without a picture (captions.txt)"


def texts_beside_a_tar(folder):
    make_tar(folder / "0.tar", 1)
    add(folder, "notes.txt", "other.TEXT", "nshards.txt")
    return "2 texts (notes.txt, …)"


def texts_named_after_the_whole_picture(folder):
    make_folder(folder, 1)
    (folder / "a.jpg").write_bytes(picture(7))
    add(folder, "a.jpg.txt")
    return "1 text without a picture (a.jpg.txt)"


def a_sidecar_whose_tar_is_missing(folder):
    for i in range(2):
        make_tar(folder / f"0000{i}.tar", 1)
        add(folder, f"0000{i}_stats.json")
    for i in range(3):
        pq.write_table(SIDECAR, folder / f"0000{i}.parquet")
    return "1 Parquet file without images (00002.parquet)"


def captions_in_parquet_beside_parquet(folder):
    make_parquet(folder / "a.parquet", 2)
    pq.write_table(SIDECAR, folder / "b.parquet")
    return "1 Parquet (b.parquet)"


def listings_beside_shards(folder):
    make_parquet(folder / "a.parquet", 2)
    (folder / "b.csv").write_text("image,caption\na.jpg,b\n")
    return "1 listing (--input_format listing) (b.csv)"


def folders_with_a_low_line(folder):
    make_folder(folder / "a", 1)
    make_folder(folder / "_old", 2)
    make_folder(folder / "a" / "_older", 2)
    make_folder(folder / "@eaDir", 1)
    return "2 skipped folders (_old, …)"


def more_kinds_than_a_line_names(folder):
    make_folder(folder, 1)
    add(folder, *(f"{i}.kind{i}" for i in range(10)), "other.kind9")
    names = [f"1 .kind{i} ({i}.kind{i})" for i in range(7)]
    return ", ".join(["2 .kind9 (9.kind9, …)", *names, "2 of other kinds"])


def pictures_in_a_folder_of_a_shards_name(folder):
    make_folder(folder / "train", 2)
    make_parquet(folder / "train.parquet", 1)
    return "2 pictures (000000.jpg, …), 2 texts (000000.txt, …)"


LEFT_OUT = [
    zst_beside_a_tar,
    captions_of_flickr8k,
    texts_beside_a_tar,
    texts_named_after_the_whole_picture,
    a_sidecar_whose_tar_is_missing,
    captions_in_parquet_beside_parquet,
    listings_beside_shards,
    folders_with_a_low_line,
    more_kinds_than_a_line_names,
    pictures_in_a_folder_of_a_shards_name,
]


@pytest.mark.parametrize("make", LEFT_OUT, ids=lambda make: make.__name__)
def test_it_is_in_the_last_lines_and_in_run_json(make, embed, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    line = make(tmp_path / "in")
    for lines in ("the first run", "a run that has nothing to do"):
        embed(tmp_path / "in", output=tmp_path / "out")
        said = capsys.readouterr().out.splitlines()
        assert f"note: not read: {line}" in said[said.index(next(x for x in said if "committed" in x)) :], lines
    left = json.loads((tmp_path / "out" / "run.json").read_text())["left_out"]
    assert sum(count for count, _ in left.values()) == sum(int(word) for word in line.split() if word.isdigit())


def no_loss(folder):
    make_tar(folder / "00000.tar", 1)
    pq.write_table(SIDECAR, folder / "00000.parquet")
    add(folder, "00000_stats.json", "_SUCCESS", "_metadata", ".DS_Store", "_temporary/0/a.jpg", "@eaDir/a.jpg")


def sidecars_of_a_folder(folder):
    make_folder(folder / "00000", 1)
    pq.write_table(SIDECAR, folder / "00000.parquet")
    os.symlink(folder / "00000", folder / "again")


@pytest.mark.parametrize("make", [no_loss, sidecars_of_a_folder])
def test_sidecars_markers_and_leftovers_are_not(make, embed, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    make(tmp_path / "in")
    embed(tmp_path / "in", output=tmp_path / "out")
    assert "note: not read" not in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "run.json").read_text())["left_out"] == {}


def test_what_another_input_names_or_input_format_does_not_ask_for_is_not(embed, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    make_tar(tmp_path / "in" / "0.tar", 1)
    (tmp_path / "in" / "b.csv").write_text("caption\na\n")
    embed(tmp_path / "in", tmp_path / "in" / "b.csv", output=tmp_path / "both")
    embed(tmp_path / "in", output=tmp_path / "tars", flags=["--input_format", "webdataset"])
    assert "note: not read" not in capsys.readouterr().out
    add(tmp_path / "in", "c.zip")
    embed(tmp_path / "in", output=tmp_path / "tars", flags=["--input_format", "webdataset"])
    assert "note: not read: 1 .zip (c.zip)" in capsys.readouterr().out


def tar_in_zstd(folder):
    with open(make_tar(folder / "x.tar", 3), "rb") as file:
        (folder / "a.tar.zst").write_bytes(pa.compress(file.read(), "zstd", asbytes=True))
    os.remove(folder / "x.tar")


def empty_texts(folder):
    members = [m for i in range(3) for m in pair(str(i), i, "" if i else "cap", json=b'{"caption": "json"}')]
    write_tar(folder / "a.tar", [*members, *pair("x", 9, " ")])


def texts_in_bytes(folder):
    columns = {"image": [picture(i) for i in range(4)], "caption": [b"a", None, b" ", b"\xff"]}
    pq.write_table(pa.table(columns), folder / "a.pq")


def paths_from_above(folder):
    make_folder(folder / "images", 4)
    paths = [{"bytes": None, "path": f"images/{i:06d}.jpg"} if i else None for i in range(4)]
    table = pa.table({"image": pa.array(paths, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))})
    (folder / "data").mkdir()
    pq.write_table(table.append_column("text", [["a", "b", "", "d"]]), folder / "data" / "a.parquet")


def upper_case(folder):
    for i, text in enumerate(("TXT", "txt", "Txt")):
        (folder / f"{i}.JPG").write_bytes(picture(i))
        (folder / f"{i}.{text}").write_text("a" if i < 2 else "")


@pytest.mark.parametrize("make", [tar_in_zstd, empty_texts, texts_in_bytes, paths_from_above, upper_case])
def test_the_independent_count_agrees(make, embed, tmp_path):
    (tmp_path / "in").mkdir()
    make(tmp_path / "in")
    embed(tmp_path / "in", output=tmp_path / "out", flags=["--max_reject_fraction", "1"])
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert count_sources.compare(run, [tmp_path / "in"]) == [] and run["input"]["samples"] > 2
