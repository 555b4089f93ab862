"""What a person reads in the place of a shard's URI is never the name of some other picture."""

import pytest
from conftest import make_folder
from html_page import Page

from clip_transforms import report_embeddings
from clip_transforms.parts.shard_name import shard_name
from clip_transforms.shards import cut
from pipelines import search


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
