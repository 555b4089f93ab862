"""A report of hostile, empty, partial and moved datasets, and what is refused."""

import re
import shutil

import numpy as np
import pytest
from conftest import make_folder, make_tar, picture
from html_page import Page

from benchmarks.datasets import write_rows
from clip_transforms import embed_shards, filter_embeddings, report_embeddings
from clip_transforms.parts.dataset import DatasetError
from clip_transforms.parts.manifest import OutputError
from clip_transforms.run import report_steps
from clip_transforms.storage import StorageError
from pipelines import report
from pipelines.command_line import UsageError

# Commands in this process; those in a process of their own, and the transforms, take Beam.
pytestmark = pytest.mark.usefixtures("without_beam")

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "\u202e\u05d0\u05d1\u05d2 right to left",
    "a long caption " * 700,
    "</script></style><svg onload=alert(1)>",
    "' onmouseover='alert(1)",
]


def page_of(dataset, tmp_path, **options):
    report_embeddings(dataset, tmp_path / "r.html", **options)
    return Page((tmp_path / "r.html").read_bytes())


def synthetic(folder, n=6, captions=None, **columns):
    rng = np.random.default_rng(0)
    part = {
        "caption": captions or [f"caption {i}" for i in range(n)],
        "clip_score": np.linspace(0, 0.5, n).astype(np.float32),
        "width": [30] * n,
        "height": [20] * n,
        "image_sha256": ["0" * 64] * n,
        "caption_tokens": [5] * n,
        "image_embedding": rng.normal(size=(n, 4)),
        **columns,
    }
    return write_rows(folder, [part], {"animals": [{"label": (["cat", "dog"] * n)[:n], "probability": [0.9] * n}]})


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """A dataset whose keys and captions attack, and whose classes do; its sources are gone."""
    folder = tmp_path_factory.mktemp("hostile")
    part = {
        "caption": HOSTILE,
        "key": HOSTILE,
        "clip_score": [0.1] * 6,
        "width": [9] * 6,
        "height": [9] * 6,
        "image_sha256": ["0" * 64] * 6,
        "image_embedding": np.eye(6),
        "shard": "/shards/<b>.tar",
    }
    labels = {"animals": [{"label": HOSTILE, "probability": [0.5] * 6}]}
    return write_rows(folder / "out", [part], labels, classes=HOSTILE)


@pytest.mark.parametrize("pictures", [True, False], ids=["gone", "left out"])
def test_hostile_texts_stay_texts(hostile, tmp_path, pictures):
    page = page_of(hostile, tmp_path, pictures=pictures)
    assert page.loads() == [] and not any(tag in ("img", "b") and "id" not in a for tag, a in page.tags)
    assert len([1 for attributes, _ in page.scripts if "type" not in attributes]) == 1
    assert not [n for _, attributes in page.tags for n in attributes if n.startswith("on")]
    for text in HOSTILE[:3]:
        assert text in page.text("sheets") and text in page.text("labels")
    assert (tmp_path / "r.html").stat().st_size < 300_000


def gone(path):
    """Key → why there is no picture."""
    return dict(re.findall(r'<div class="gone"><bdi>(.*?)</bdi><span>(.*?)</span>', path.read_text()))


def test_a_source_that_is_gone_or_has_changed_shows_its_key_and_why(tmp_path, made):
    shutil.copytree(made, tmp_path / "moved")
    shutil.move(made / "a.tar", tmp_path / "a.tar")
    (made / "photos" / "000071.jpg").write_bytes(picture(99))
    result = report_embeddings(made / "out", tmp_path / "r.html")
    shutil.move(tmp_path / "a.tar", made / "a.tar")
    shutil.copy(tmp_path / "moved" / "photos" / "000071.jpg", made / "photos" / "000071.jpg")
    lost = {f"{i:06d}": "source gone" for i in range(4)} | {"000071.jpg": "source changed"}
    assert gone(tmp_path / "r.html") == lost and result["lost"] == 5
    page = Page((tmp_path / "r.html").read_bytes())
    assert "5 pictures are missing; the boxes in their place name the sample and say why" in page.text("sheets")
    assert {a["alt"] for tag, a in page.tags if tag == "img"} == {f"picture number {i}" for i in (70, 72, 73)}
    assert report_embeddings(made / "out", tmp_path / "r.html")["lost"] == 0 and gone(tmp_path / "r.html") == {}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources")
    make_tar(folder / "a.tar", 4)
    make_folder(folder / "photos", 4, first=70)
    embed_shards([str(folder / "a.tar"), str(folder / "photos")], folder / "out", "demo")
    return folder


def test_a_page_without_rows_is_a_page(tmp_path):
    empty = synthetic(tmp_path / "out", 0, [])
    page = page_of(empty, tmp_path)
    said = {name: page.text(name) for name in page.texts}
    assert "No picture has a label" in said["sheets"] and "there are no scores" in said["scores"]
    assert "There are no pictures" in said["sizes"] and "There are no captions" in said["sizes"]
    assert "no embedding to draw" in said["map"] and "Nothing was rejected" in said["rejects"]
    assert "no run came to its end" in said["what"] and "left its clocks" in said["time"]


def test_a_small_dataset_shows_each_pair_once_and_draws_no_histogram_of_one_length(tmp_path):
    page = page_of(synthetic(tmp_path / "out", n=5), tmp_path, pictures=False)
    said = page.text("sizes")
    assert "5 captions have 5 tokens, start and end included. None was cut." in said and "histogram" not in said
    titles = [title for title, _, _ in page.cards["sheets"]]
    pairs = titles[-5:]  # after the cards of labels: three best ones and two worst ones
    assert len(set(pairs)) == 5 and len(titles) == 10
    longer = page_of(synthetic(tmp_path / "longer", n=5, caption_tokens=[4, 5, 5, 6, 6]), tmp_path, pictures=False)
    said = longer.text("sizes")
    assert "5 captions have 4 to 6 tokens, start and end included; the median is 5." in said and "histogram" in said


def test_captions_alone_have_a_map_of_their_own(tmp_path):
    captions = np.random.default_rng(0).normal(size=(6, 4))
    part = {"caption": [f"caption {i}" for i in range(6)], "caption_embedding": captions, "caption_tokens": [4] * 6}
    write_rows(tmp_path / "out", [part])
    page = page_of(tmp_path / "out", tmp_path)
    assert "All 6 captions" in page.text("map") and "There are no labels" in page.text("labels")
    assert "no labels and no pairs" in page.text("sheets") and 'id="map-data"' not in (tmp_path / "r.html").read_text()


def test_a_large_dataset_is_sampled_and_the_page_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr("clip_transforms.pages.projection.POINTS", 50)
    write_rows(
        tmp_path / "out",
        [
            {"image_embedding": np.random.default_rng(i).normal(size=(40, 4)), "width": [9] * 40, "height": [9] * 40}
            for i in range(5)
        ],
    )
    page = page_of(tmp_path / "out", tmp_path)
    assert "A random sample of 50 of 200 images" in page.text("map")
    (path,) = [a["d"] for tag, a in page.tags if tag == "path" and a.get("class") == "c0"]
    assert path.count("M") == 50


def test_a_selection_narrows_what_the_page_looks_at(tmp_path):
    out = synthetic(tmp_path / "out", 8)
    filter_embeddings(out, tmp_path / "kept", where="clip_score > 0.3")
    page = page_of(out, tmp_path, selection=tmp_path / "kept", pictures=False)
    assert f"looks at 3 of 8 rows, those of the selection {tmp_path}/kept" in page.text("what")
    assert "3 rows have a clip_score" in page.text("scores") and "All 3 images" in page.text("map")
    assert f"--selection {tmp_path}/kept" in page.text("scores")
    assert [row[1] for row in page.tables["labels"][0][1:]] == ["2", "1"]


def test_labels_that_are_not_whole_are_left_out_with_a_word(tmp_path):
    synthetic(tmp_path / "out")
    next((tmp_path / "out" / "labels" / "animals").iterdir()).unlink()
    page = page_of(tmp_path / "out", tmp_path, pictures=False)
    assert "Left out: " in page.text("what") and "has no labels/animals for 1 of 1 part" in page.text("what")
    assert "There are no labels" in page.text("labels")


def test_without_pictures_a_page_of_many_labels_and_long_captions_is_small(tmp_path):
    classes = [f"class number {i}" for i in range(40)]
    n = 12 * len(classes)
    columns = {name: [9] * n for name in ("width", "height", "caption_tokens")}
    columns |= {"caption": HOSTILE[1:4] * (n // 3), "clip_score": np.linspace(0, 0.9, n).astype(np.float32)}
    columns |= {"image_embedding": np.random.default_rng(0).normal(size=(n, 4))}
    labels = [{"label": classes * 12, "probability": np.linspace(0.1, 1, n)}]
    write_rows(tmp_path / "out", [columns], {"a": labels, "b": labels}, classes=classes)
    page_of(tmp_path / "out", tmp_path, pictures=False)
    assert (tmp_path / "r.html").stat().st_size < 300_000


REFUSED = {
    "in the dataset": (
        {"output": "out/r.html"},
        r"^--output .*/out/r.html lies in the dataset .*/out; give a file",
    ),
    "a folder": ({"output": ""}, r"^--output .* is a folder, but it must be an HTML file; give a name that ends in"),
    "in no folder": (
        {"output": "mine.html/r.html"},
        r"^--output .*/mine.html/r.html cannot be written to: .*/mine.html is read-only or not a folder; choose",
    ),
    "no page": ({"output": "r.txt"}, r"^--output .*/r.txt must end in .html; give .*/r.txt.html$"),
    "a foreign file": (
        {"output": "mine.html"},
        r"^--output .*/mine.html is a file that this program did not wri",
    ),
    "no groups": (
        {"duplicates": "kept"},
        r"^--duplicates .*/kept has no groups/; give a folder that dedup",
    ),
    "no truth value": ({"pictures": "no"}, r"^pictures is a str \('no'\)"),
}


@pytest.mark.parametrize("options, said", REFUSED.values(), ids=REFUSED)
def test_what_is_wrong_is_refused_in_a_sentence_and_nothing_is_written(tmp_path, options, said):
    out = synthetic(tmp_path / "out")
    filter_embeddings(out, tmp_path / "kept", where="row < 3")
    (tmp_path / "mine.html").write_text("<p>mine</p>")
    given = {name: tmp_path / value if name != "pictures" else value for name, value in options.items()}
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    with pytest.raises(ValueError, match=said):
        report_embeddings(out, **{"output": tmp_path / "r.html", **given})
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_an_earlier_page_is_made_anew_and_a_foreign_file_only_if_that_is_asked_for(tmp_path, without_beam, capsys):
    out, page = synthetic(tmp_path / "out"), tmp_path / "r.html"
    page.write_text("mine")
    argv = ["--input", out, "--output", str(page)]
    with pytest.raises(OutputError):
        report.main(argv)
    assert report.main([*argv, "--overwrite"]) == report.main(argv) == 0
    assert page.read_text().startswith("<!doctype html>")
    said = "note: 6 pictures could not be read again; the page says which, and why\n"
    assert capsys.readouterr().out.endswith(said)


def test_the_command_names_what_is_missing(monkeypatch, tmp_path, without_beam):
    with pytest.raises(UsageError, match="^--input is missing: give the folder of a dataset that pipelines.embed"):
        report.main([])
    monkeypatch.chdir(tmp_path)
    assert report.main(["--input", synthetic(tmp_path / "out"), "--no_pictures"]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "report.html"]


def test_embed_writes_a_page_at_its_end(embed, tmp_path, capsys):
    folder = make_folder(tmp_path / "photos", 3)
    embed(folder, output=tmp_path / "out", flags=["--report", tmp_path / "r.html"])
    assert f"\n{tmp_path}/r.html: " in capsys.readouterr().out
    assert "Of the images of 3 samples, 3 were embedded" in Page((tmp_path / "r.html").read_bytes()).text("what")
    with pytest.raises(OutputError, match="^--report .*/photos/r.html lies in what is embedded, .*/photos; give"):
        embed(folder, output=tmp_path / "new", flags=["--report", tmp_path / "photos" / "r.html"])
    with pytest.raises(StorageError, match="^--report .*/r.html/s.html cannot be written to: .*/r.html is read"):
        embed(folder, output=tmp_path / "new", flags=["--report", tmp_path / "r.html" / "s.html"])
    assert not (tmp_path / "new").exists()


def test_embed_writes_a_page_of_nothing_too_and_keeps_its_exit_code(embed, tmp_path):
    (tmp_path / "l.csv").write_text("image,caption\n")
    embed(tmp_path / "l.csv", output=tmp_path / "out", flags=["--report", tmp_path / "r.html"], code=3)
    assert "Not complete: nothing was embedded" in Page((tmp_path / "r.html").read_bytes()).text("what")


def test_nothing_beside_the_page_is_touched_and_what_a_killed_run_left_goes(tmp_path):
    out = synthetic(tmp_path / "out")
    (tmp_path / "_temporary" / "mine").mkdir(parents=True)
    (tmp_path / "r.html.unfinished" / "_temporary" / "dead").mkdir(parents=True)
    report_embeddings(out, tmp_path / "r.html", pictures=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["_temporary", "out", "r.html"]
    assert (tmp_path / "_temporary" / "mine").is_dir()


def test_a_dataset_that_changes_while_it_is_read_gives_no_page(tmp_path, monkeypatch):
    out = synthetic(tmp_path / "out")
    chosen = report_steps.choosing.best_of

    def change(several):
        synthetic(tmp_path / "out", caption_tokens=[6] * 6)
        return chosen(several)

    monkeypatch.setattr(report_steps.choosing, "best_of", change)
    with pytest.raises(DatasetError, match="has changed while this command read it"):
        report_embeddings(out, tmp_path / "r.html", pictures=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
