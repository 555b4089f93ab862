"""What a person reads in the place of a shard's URI is never the name of some other picture."""

import pytest
from conftest import make_folder, make_tar
from html_page import Page

from clip_transforms import filter_embeddings, report_embeddings
from clip_transforms.parts.manifest import OutputError
from clip_transforms.parts.shard_name import folder_around, shard_name
from clip_transforms.shards import cut
from pipelines import inspect, search


@pytest.mark.parametrize(
    "shard, name",
    [
        ("/data/web/a.tar", "a.tar"),
        ("s3://bucket/web/a.parquet", "a.parquet"),
        ("/data/photos#", "photos#"),
        ("/data/photos/#", "photos#"),
        ("/data/photos#cats/1000.jpg", "photos#cats/1000.jpg"),
        ("/data/a#1.tar", "a#1.tar"),
        ("a.tar", "a.tar"),
    ],
)
def test_the_name_begins_at_the_file_or_at_the_folder_that_was_cut(shard, name):
    assert shard_name(shard) == name


def test_a_search_and_a_report_name_the_folder_of_a_later_unit(embed, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cut, "FOLDER_CUT_MODULUS", 1)  # each picture becomes a unit
    make_folder(tmp_path / "photos", 3)
    (tmp_path / "photos" / "000002.jpg").write_bytes(b"no picture")
    embed(tmp_path / "photos", output=tmp_path / "out", flags=["--max_reject_fraction", "0.5"])
    capsys.readouterr()
    assert search.main(["--input", str(tmp_path / "out"), "--like", "000001.jpg"]) == 0
    header, *rows = capsys.readouterr().out.splitlines()[1:4]
    assert header.split()[:3] == ["similarity", "key", "from"]
    assert sorted(row.split()[2:4] for row in rows) == [
        ["000000.jpg", "photos##0"],
        ["000001.jpg", "photos#000000.jpg#0"],
    ]
    report_embeddings(tmp_path / "out", tmp_path / "r.html")
    page = Page((tmp_path / "r.html").read_bytes())
    (table,) = page.tables["rejects"]
    assert "photos#000001.jpg , row 0" in table[1][2]
    titles = {title for cards in page.cards.values() for title, *_ in cards}
    assert titles == {"000000.jpg (photos#, row 0)", "000001.jpg (photos#000000.jpg, row 0)"}


def test_tars_with_a_number_sign_are_no_pieces_of_a_folder(embed, tmp_path, capsys):
    for name in ("a#1", "a#2"):
        make_tar(tmp_path / f"{name}.tar", 1, first=int(name[-1]))
    (tmp_path / "a").mkdir()
    embed(tmp_path / "*.tar", output=tmp_path / "out")
    capsys.readouterr()
    assert inspect.main([str(tmp_path / "out")]) == 0
    assert "a#1.tar" in (shown := capsys.readouterr().out) and "a#2.tar" in shown
    assert filter_embeddings(tmp_path / "out", tmp_path / "a" / "all", where="TRUE")["counts"]["kept"] == 2
    report_embeddings(tmp_path / "out", tmp_path / "a" / "r.html")
    assert Page((tmp_path / "a" / "r.html").read_bytes()).cards


def test_nothing_is_written_into_a_folder_with_a_number_sign_that_was_embedded(embed, tmp_path):
    make_folder(tmp_path / "photos#1", 2)
    embed(tmp_path / "photos#1", output=tmp_path / "out")
    with pytest.raises(OutputError, match="which was embedded"):
        filter_embeddings(tmp_path / "out", tmp_path / "photos#1" / "all", where="TRUE")
    with pytest.raises(OutputError, match="what is embedded"):
        report_embeddings(tmp_path / "out", tmp_path / "photos#1" / "r.html")
    assert not {"all", "r.html"} & {path.name for path in (tmp_path / "photos#1").iterdir()}


def test_a_later_unit_alone_tells_which_folder_was_embedded(tmp_path):
    (tmp_path / "b#1.tar").write_bytes(b"")
    shards = [f"{tmp_path}/photos#b/1000.jpg", f"{tmp_path}/b#1.tar", f"{tmp_path}/x#1/c#2.jpg"]
    around = {
        name: folder_around(f"{tmp_path}/{name}", shards) for name in ("photos/sel", "photos", "b/sel", "x#1/c/r")
    }
    assert around == {
        "photos/sel": f"{tmp_path}/photos",
        "photos": f"{tmp_path}/photos",
        "b/sel": "",
        "x#1/c/r": f"{tmp_path}/x#1/c",
    }
    assert folder_around(f"{tmp_path}/photos2", shards) == ""
