"""search: what is printed, and the page of pictures."""

import base64
import io
import re

import duckdb
import numpy as np
import pytest
from conftest import pair, picture, write_tar
from PIL import Image
from searched import made_pictures, made_single  # noqa: F401

from benchmarks.datasets import write_rows
from clip_transforms import Dataset, clip, embed_shards, search_embeddings
from clip_transforms.pages.sheets import WHY
from pipelines import search

# Commands in this process; those in a process of their own, and the transforms, take Beam.
pytestmark = pytest.mark.usefixtures("without_beam")


def test_a_long_list_is_in_the_file_and_its_beginning_is_printed(single, tmp_path, capsys, without_beam):
    first = Dataset.open(single).to_table(["shard", "row"]).to_pylist()[0]
    argv = ["--input", str(single), "--like", f"{first['shard']}#{first['row']}", "--top_k", "50"]
    assert search.main([*argv, "--output", str(tmp_path / "found")]) == 0
    printed = capsys.readouterr().out
    assert "   … and 30 more\n" in printed and len(printed.splitlines()) < 30
    assert search.main(argv) == 0
    assert len([line for line in capsys.readouterr().out.splitlines() if line[:4].strip().isdigit()]) == 50


def test_a_longer_list_than_there_are_rows_is_all_rows_and_a_line(pictures, capsys):
    argv = ["--input", str(pictures / "out"), "--text", "a cat", "--text", "a dog", "--top_k", "100"]
    assert search.main(argv) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "a cat" and said[1].split() == ["similarity", "key", "from", "caption", "labels"]
    assert said[2].split()[0] == "1" and said[10] == ""
    assert said[-2:] == [
        "16 results for 2 queries; searched: 8 rows with an image embedding; 1 without",
        "note: --top_k 100 is more than there are; every row was found",
    ]


def test_nothing_found_is_a_valid_output_and_a_line(pictures, tmp_path, capsys, without_beam):
    argv = ["--input", str(pictures / "out"), "--text", "a cat", "--where", "width > 10000", "--output"]
    assert search.main([*argv, str(tmp_path / "found")]) == 0
    assert "note: nothing was found" in capsys.readouterr().out
    assert duckdb.sql(f"FROM '{tmp_path}/found/results.parquet'").fetchall() == []
    assert (tmp_path / "found" / "_SUCCESS").exists()


def test_a_hostile_caption_does_not_control_the_terminal(tmp_path, capsys):
    caption = "\x1b[31mred\nnext\u202e"
    write_rows(tmp_path / "out", [{"image_embedding": np.eye(1, 4), "caption": [caption], "key": ["\x1b]0;x\x07"]}])
    assert search.main(["--input", str(tmp_path / "out"), "--like", "/shards/0.tar#0"]) == 0
    said = capsys.readouterr().out
    assert "\\x1b[31mred next\\u202e" in said and "\x1b" not in said and "\u202e" not in said


HOSTILE = '</bdi><script>alert(1)</script><img src=x onerror="alert(2)">'


def test_a_picture_without_a_caption_is_named_once_under_it(tmp_path, tiny_checkpoint):
    write_tar(tmp_path / "a.tar", [("alone.jpg", picture(1)), *pair("both", 2, caption="two of them")])
    embed_shards(tmp_path / "a.tar", tmp_path / "out", clip.ClipSpec(tiny_checkpoint, precision="fp32"))
    search_embeddings(tmp_path / "out", text="a", html=tmp_path / "page.html")
    cards = re.findall("</?bdi[^>]*>([^<]+)</bdi>", (tmp_path / "page.html").read_text())
    assert [cards.count(text) for text in ("alone", "both", "two of them")] == [1, 1, 1]


def test_the_page_shows_pictures_and_escapes_hostile_captions(tmp_path, tiny_checkpoint, capsys):
    samples = [m for i in range(3) for m in pair(f"{i}", i, caption=HOSTILE)]
    write_tar(tmp_path / "a.tar", samples)
    write_tar(tmp_path / "b.tar", pair("words", 7, caption="gone")[0:2])
    spec = clip.ClipSpec(tiny_checkpoint, precision="fp32")
    embed_shards([tmp_path / "a.tar", tmp_path / "b.tar"], tmp_path / "out", spec)
    (tmp_path / "b.tar").unlink()
    argv = ["--input", str(tmp_path / "out"), "--text", HOSTILE, "--html", str(tmp_path / "page.html")]
    assert search.main(argv) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[-1].startswith(f"{tmp_path}/page.html: open it in a browser; 1 picture could not be read again")
    page = (tmp_path / "page.html").read_text()
    assert "<script" not in page and "<img src=x" not in page and "onerror=&#34;" in page
    pictures = [base64.b64decode(data) for data in re.findall(r"data:image/webp;base64,([^\"]+)", page)]
    assert [Image.open(io.BytesIO(data)).size for data in pictures] == [(128, 128)] * 3
    assert WHY["vanished"] in page and "words" in page and "default-src 'none'" in page
    argv[-1] = str(tmp_path / "new" / "page.html")
    for _ in range(2):  # a page is made anew each time
        assert search.main([*argv, "--output", str(tmp_path / "found")]) == 0
        said = capsys.readouterr().out
        assert "page.html: open it in a browser" in said and "goes on" not in said
    (tmp_path / "mine.html").write_text("mine")
    for name, message in (("mine.html", "that this program did not write"), ("a.jpg", "must end in .html")):
        with pytest.raises(ValueError, match=message):
            search.main([*argv[:-1], str(tmp_path / name)])
    with pytest.raises(ValueError, match="lies in the dataset"):
        search.main([*argv[:-1], str(tmp_path / "out" / "page.html")])
    with pytest.raises(ValueError, match="--allow_uri is for the pictures of --html"):
        search.main([*argv[:-2], "--allow_uri", "https://"])
