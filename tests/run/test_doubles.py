"""A shard that is in the input, or in the dataset, under another name, gets a warning: its rows would come twice."""

import os
import shutil

import pytest
from conftest import make_folder, make_parquet, make_tar


def warnings(capsys):
    return [line for line in capsys.readouterr().out.splitlines() if "in the dataset twice" in line]


def line(new, old, what, count="1 such unit"):
    cause = f"{new} has the {what} of {old} ({count}); if they are the same file"
    return f"warning: {cause}, its rows will be in the dataset twice"


MAKE = {"tar": make_tar, "parquet": make_parquet}


@pytest.mark.parametrize("link", [os.symlink, os.link])
@pytest.mark.parametrize("kind", MAKE)
def test_a_link_with_another_name(kind, link, embed, tmp_path, capsys):
    (tmp_path / "in").mkdir()
    x = MAKE[kind](tmp_path / "in" / f"x.{kind}", 2)
    link(x, tmp_path / "in" / f"y.{kind}")
    embed(tmp_path / "in", output=tmp_path / "out")
    assert warnings(capsys) == [line(f"{tmp_path}/in/y.{kind}", x, "size and time")]


def test_several_links_and_copies_with_the_same_name_are_counted(embed, tmp_path, capsys):
    for name in "ab":
        (tmp_path / "in" / name).mkdir(parents=True)
    a = make_tar(tmp_path / "in" / "a" / "x.tar", 2)
    for name in ("y.tar", "z.tar"):
        os.symlink(a, tmp_path / "in" / "a" / name)
    shutil.copy(a, tmp_path / "in" / "b" / "x.tar")
    embed(tmp_path / "in", output=tmp_path / "out")
    assert warnings(capsys) == [
        line(f"{tmp_path}/in/b/x.tar", a, "name and size"),
        line(f"{tmp_path}/in/a/y.tar", a, "size and time", "2 such units"),
    ]


def test_a_shard_that_was_renamed_between_two_runs(embed, tmp_path, capsys):
    x = make_tar(tmp_path / "x.tar", 2)
    embed(x, output=tmp_path / "out")
    os.rename(x, tmp_path / "y.tar")
    embed(tmp_path / "y.tar", output=tmp_path / "out")
    assert warnings(capsys) == [line(tmp_path / "y.tar", x, "size and time")]


def test_an_object_with_the_same_etag(s3, embed, tmp_path, capsys):
    make_tar(tmp_path / "x.tar", 2)
    for name in ("x", "y"):
        s3.fs.put(str(tmp_path / "x.tar"), f"bucket/in/{name}.tar")
    embed("s3://bucket/in", output=tmp_path / "out")
    assert warnings(capsys) == [line("s3://bucket/in/y.tar", "s3://bucket/in/x.tar", "size and time")]


def test_other_files_of_one_size_and_time_are_not(embed, tmp_path, capsys):
    """As `tar --mtime` and downloads without times leave them; links of folders and of pictures are something else."""
    for i, name in enumerate(("x.tar", "y.tar")):
        make_tar(tmp_path / name, 2, first=10 * i)
        os.utime(tmp_path / name, (0, 0))
    assert (tmp_path / "x.tar").stat().st_size == (tmp_path / "y.tar").stat().st_size
    make_folder(tmp_path / "photos", 1)
    os.symlink("000000.jpg", tmp_path / "photos" / "b.jpg")
    embed(tmp_path / "*.tar", tmp_path / "photos", output=tmp_path / "out")
    assert warnings(capsys) == []
