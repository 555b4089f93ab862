"""What the documents say is what the code does."""

import importlib
import importlib.util
import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import duckdb
import numpy as np
import pyarrow.parquet as pq
import pytest
import safetensors.torch
from conftest import ROOT, browse, make_folder, make_parquet, make_tar, pair, write_tar
from forked import Process, run

import clip_transforms
from clip_transforms import ClipSpec, Taxonomy, embed_shards, filter_embeddings
from pipelines import demo

README = (Path(ROOT) / "README.md").read_text()
USAGE = (Path(ROOT) / "docs" / "usage.md").read_text()
COOKBOOK = (Path(ROOT) / "docs" / "cookbook.md").read_text()
MEASURED = re.compile(r"pairs/s|labels that agree|│")  # lines whose numbers differ between machines


def test_the_columns_page_is_fresh():
    spec = importlib.util.spec_from_file_location("columns", Path(ROOT) / "docs" / "columns.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    stale = "run `python docs/columns.py`"
    assert (Path(ROOT) / "docs" / "columns.md").read_text() == module.render(), stale


def blocks(language, text=README):
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def examples(language, text=README + USAGE):
    """Every block of code, with the output that is shown under it, if any."""
    return re.findall(rf"```{language}\n(.*?)```(?:\n+```text\n(.*?)```)?", text, re.DOTALL)


def commands(block):
    """The commands of a block, one a line, with continued lines joined."""
    return [line for line in block.replace("\\\n", " ").splitlines() if line.strip() and not line.startswith("#")]


def assert_shown(shown, printed):
    """Every shown line was printed, in this order; `…` stands for anything, and measured numbers are not compared."""
    lines = iter(printed.splitlines())
    for wanted in filter(None, (line.strip() for line in shown.splitlines())):
        if wanted == "…":
            continue
        pattern = ".*".join(map(re.escape, wanted.split("…")))
        if MEASURED.search(wanted):
            pattern = re.sub(r"(\d|,\d|\\\.\d)+", r"[\\d,.]+", pattern)
        assert any(re.fullmatch(pattern, line.strip()) for line in lines), (wanted, printed)


def test_the_make_targets_of_the_readme_exist():
    targets = re.findall(r"^(\w+):", (Path(ROOT) / "Makefile").read_text(), re.MULTILINE)
    named = [c.split()[1] for block, _ in examples("bash") for c in commands(block) if c.startswith("make ")]
    assert named and set(named) <= set(targets)


@pytest.fixture
def workplace(tmp_path, tiny_checkpoint):
    """A folder with everything that the README's commands name."""
    path = tmp_path
    make_folder(path / "photos", 12)
    (path / "animals.txt").write_text("red star\nblue circle\n")
    (path / "colors.txt").write_text("red\nblue\n")
    (path / "moods.txt").write_text("cheerful\ngloomy\n")
    coco = {"images": [{"id": 7, "file_name": "7.jpg"}], "annotations": [{"image_id": 7, "caption": "a cat"}]}
    (path / "captions_val2017.json").write_text(json.dumps(coco))
    classes = ["red star", "blue circle"] * 5 + ["green moon", ""]
    truth = "".join(f"{i:06d}.jpg,{name}\n" for i, name in enumerate(classes))
    (path / "truth.csv").write_text(f"key,class\n{truth}")
    listed = (f"photos/{i:06d}.jpg,number {i},{classes[i]},{['indoors', 'outdoors'][i % 2]}\n" for i in range(1, 10))
    (path / "photos.csv").write_text("path,caption,animal,place\n" + "".join(listed))
    for folder in ("web", "more", "demo"):
        (path / folder).mkdir()
    for i in range(2):
        make_tar(path / "demo" / f"scenes-{i}.tar", 4, first=50 + 4 * i)
    for i in range(10):
        make_tar(path / "web" / f"{i:05d}.tar", 2, first=2 * i)
    make_parquet(path / "more" / "a.parquet", 3)
    state = safetensors.torch.load_file(tiny_checkpoint)
    safetensors.torch.save_file(state, path / "my-clip.safetensors")  # says no activation, like most files
    return path


@pytest.mark.timeout(300)
def test_every_command_of_the_readme_runs_and_prints_what_is_shown(workplace, capfd, monkeypatch, without_beam):
    """The first in a process of its own, as it is typed, the others in this one and without Beam."""
    monkeypatch.chdir(workplace)
    typed, compared = set(), 0
    for block, shown in examples("bash"):
        lines = [c for c in commands(block) if c.startswith("python -m pipelines.")]
        assert not shown or len(lines) == 1 or "make demo" in block, block
        for line in lines:
            argv = shlex.split(line.removeprefix("python "), comments=True)
            module = argv[1]
            if module == "pipelines.browse":
                assert_shown(shown.replace(":8642/", ":…/"), browse(*argv[2:]))
                continue
            if typed:
                code = importlib.import_module(module).main(argv[2:])
            else:
                code = Process(*argv).wait(timeout=100)
            typed.add(module)
            printed = capfd.readouterr()
            assert code == 0, (line, printed.err)
            assert_shown(shown, printed.out)
            compared += bool(shown)
    names = (
        "embed",
        "label",
        "models",
        "filter",
        "deduplicate",
        "export",
        "search",
        "index",
        "evaluate",
        "report",
        "inspect",
    )
    assert typed == {f"pipelines.{name}" for name in names} and compared >= 10


@pytest.fixture
def shop(tmp_path):
    """The tars that the cookbook begins with: 20 pictures, of which the last repeats the first."""
    (tmp_path / "web").mkdir()
    (tmp_path / "animals.txt").write_text("cat\ndog\n")
    truth = "".join(f"{i:06d},{['cat', 'dog'][i % 2]}\n" for i in range(18))
    (tmp_path / "labels.csv").write_text(f"key,class\n{truth}")
    licences = ["CC0", "CC-BY", None, "all rights reserved"]
    for tar in range(2):
        samples = []
        for i in range(10 * tar, 10 * tar + 10):
            facts = {"licence": licences[i % 4], "url": f"https://example.org/{i}.jpg", "uid": f"{i:032x}"}
            members = pair(f"{i:06d}", i % 19, json=json.dumps(facts).encode())
            samples += members
        write_tar(tmp_path / "web" / f"{tar:05d}.tar", samples)
    return tmp_path


def test_every_recipe_of_the_cookbook_works(shop, capfd, monkeypatch, without_beam):
    """In the order of the page: what one recipe wrote, later ones read."""
    monkeypatch.chdir(shop)
    rows = {}
    for language, block, shown in re.findall(r"```(bash|sql)\n(.*?)```(?:\n+```text\n(.*?)```)?", COOKBOOK, re.DOTALL):
        if language == "sql":
            rows[block] = duckdb.execute(block).fetchall()
            continue
        for line in commands(block):
            argv = shlex.split(line.replace("ViT-B/32", "demo").replace("ViT-L/14", "demo"))[2:]
            assert importlib.import_module(argv[0]).main(argv[1:]) == 0, line
        assert_shown(shown, capfd.readouterr().out)
    assert len(COOKBOOK.split("\n## ")) >= 10 and len(rows) == 5
    (groups,) = [of for block, of in rows.items() if "groups" in block]
    assert {key for _, key, _, _ in groups} <= {f"{i:06d}" for i in range(20)} and len(groups) > 2
    (models,) = [of for block, of in rows.items() if "scores" in block]
    assert [(model, n) for model, n, *_ in models] == [("base", 18), ("large", 18)]
    assert duckdb.execute("SELECT count(*), min(url) FROM 'best.parquet'").fetchall()[0][0] == 7
    uids = np.load(next((shop / "for-datacomp").rglob("uids.npy")))
    assert len(uids) == 7 and uids.dtype.descr == [("f0", "<u8"), ("f1", "<u8")]
    selected = {path.name: pq.read_table(path).num_rows for path in (shop / "once" / "parts").iterdir()}
    assert sum(selected.values()) == 19


def test_the_chosen_pictures_can_be_had_as_a_folder_from_tars_and_from_photos(tmp_path, monkeypatch, without_beam):
    """The recipe as it stands, over the pictures of a tar and over a folder with folders in it."""
    monkeypatch.chdir(tmp_path)
    _, recipe = COOKBOOK.split("## A folder of the chosen pictures\n")
    recipe = recipe.partition("\n## ")[0]
    (export,), (unpack,), (copy,) = (blocks(language, recipe) for language in ("bash", "sh", "python"))
    write_tar(tmp_path / "a.tar", [member for i in range(3) for member in pair(f"{i:06d}", i)])
    make_folder(tmp_path / "photos" / "2024", 3, first=3)
    for source, keys in (("a.tar", ["000001"]), ("photos", ["2024/000003.jpg", "2024/000004.jpg"])):
        for made in ("out", "best", "chosen-tars", "chosen-pictures"):
            shutil.rmtree(made, ignore_errors=True)
        embed_shards(source, "out", ClipSpec("demo"))
        filter_embeddings("out", "best", where=f"key IN ({', '.join(map(repr, keys))})")
        assert importlib.import_module("pipelines.export").main(shlex.split(export)[3:]) == 0
        subprocess.run(["sh", "-ec", unpack], check=True, timeout=60)
        names = {key.removesuffix(".jpg").replace("/", "_") for key in keys}
        found = {path.name for path in Path("chosen-pictures").iterdir()}
        assert found == {f"{name}.{kind}" for name in names for kind in ("jpg", "txt", "json")}
    assert run("-c", copy, cwd=tmp_path, timeout=60).returncode == 0
    copied = {path: path.read_bytes() for path in Path("chosen-photos").rglob("*.*")}
    assert copied == {Path("chosen-photos", key): Path("photos", key).read_bytes() for key in keys}


def test_the_analysts_query_of_the_readme_answers(workplace):
    taxonomy = Taxonomy.load(str(workplace / "animals.txt"))
    embed_shards([str(workplace / "photos")], str(workplace / "out"), ClipSpec("demo"), [taxonomy])
    (query,) = blocks("sql")
    query = query.replace("'out/", f"'{workplace}/out/").replace("> 0.28", "> -1").replace("= 'cat'", "IS NOT NULL")
    assert len(duckdb.connect().execute(query).fetchall()) > 0


@pytest.mark.parametrize("block, shown", examples("python"), ids=lambda text: " ".join(text.split()[:4]))
def test_the_python_of_the_readme_runs_and_prints_what_is_shown(block, shown, workplace):
    photo = next((workplace / "photos").glob("*.jpg"))
    shutil.copy(photo, workplace / "cat.jpg")
    replaced = block.replace('"ViT-B/32"', '"demo"').replace("gs://web/shards/{00000..00999}.tar", "photos")
    replaced = replaced.replace("gs://web/clip", "out-python").replace("animals.json", "animals.txt")
    done = run("-c", replaced, cwd=workplace, timeout=100)
    assert done.returncode == 0, done.stderr
    assert_shown(shown, done.stdout)


@pytest.mark.parametrize("name", clip_transforms.__all__)
def test_every_public_name_can_be_imported_and_is_documented(name):
    assert getattr(clip_transforms, name).__doc__
    assert re.search(rf"`{name}`", USAGE)


def test_a_shown_line_that_was_not_printed_is_found():
    assert_shown("…\n2 units, … MB\n80.3 pairs/s; short", "first\n2 units, 3 MB\nother\n1,444 pairs/s; short\n")
    for shown in ("3 units, … MB", "80.3 pairs/s; long", "2 units, 3 MB\nfirst"):
        with pytest.raises(AssertionError):
            assert_shown(shown, "first\n2 units, 3 MB\n1,444 pairs/s; short\n")


@pytest.mark.parametrize(
    "page",
    [*sorted(Path(ROOT).glob("*.md")), *sorted(Path(ROOT, "docs").glob("*.md"))],
    ids=lambda p: str(p.relative_to(ROOT)),
)
def test_every_link_leads_to_a_file_and_a_heading(page):
    links = [link for link in re.findall(r"\]\(([^)]+)\)", page.read_text()) if "://" not in link]
    for link in links:
        name, _, heading = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), link
        assert not heading or heading in anchors(target), link


def anchors(page):
    """The names by which GitHub links to the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_readme_stays_short_and_the_map_names_every_document():
    assert len(README.splitlines()) < 200
    named = (Path(ROOT) / "docs" / "README.md").read_text()
    documents = {path.name for path in (Path(ROOT) / "docs").glob("*.md")} - {"README.md"}
    assert documents <= set(re.findall(r"\(([\w-]+\.md)\)", named))


@pytest.mark.timeout(200)
def test_the_demo_shows_everything_and_says_that_nothing_was_left_to_do_the_second_time(
    tmp_path, monkeypatch, capsys, without_beam
):
    first = run("-m", "pipelines.demo", cwd=tmp_path, timeout=150)
    assert first.returncode == 0, first.stderr
    for piece in (
        "$ python -m pipelines.embed --input",
        "images    2,000 = 1,996 embedded + 4 rejected (4 decode: truncated) + 0 absent",
        "captions  2,000 = 1,976 embedded + 4 rejected (4 read: not UTF-8) + 20 absent; 4 cut at 77 tokens",
        "Five rows",
        "In DuckDB",
        "$ python -m pipelines.evaluate --input demo/out",
        "image → captions",
        "linear probe",
        "zero-shot labels of shapes, by drawn_background, with 95 % intervals:",
        "$ python -m pipelines.filter --input demo/out",
        "$ python -m pipelines.deduplicate --input demo/out",
        "/demo/kept\n",
        "/demo/unique\n",
        "--input ~/Pictures",
    ):
        assert piece.lower() in first.stdout.lower(), piece
    (shown,) = [shown for block, shown in examples("bash") if "make demo" in block]
    assert_shown(shown, first.stdout)
    shapes, colors = re.findall(r"(?:shapes|colors) ([\d,]+) of 1,996", first.stdout)
    assert min(int(n.replace(",", "")) for n in (shapes, colors)) > 0.98 * 1996
    metrics = json.loads((tmp_path / "demo" / "evaluated" / "metrics.json").read_text())
    assert metrics["zeroshot"]["taxonomies"]["shapes"]["acc1"] > 0.95 and metrics["probe"]["acc1"] > 0.95
    assert metrics["retrieval"]["image_to_caption"]["recall@10"] > 0.5
    monkeypatch.chdir(tmp_path)
    assert demo.main([]) == 0 and "nothing was left to do" in capsys.readouterr().out


def test_every_file_that_the_contributors_guide_names_exists():
    text = (Path(ROOT) / "CONTRIBUTING.md").read_text()
    planned = set(re.findall(r"`([\w/]+/)` \(does not exist yet\)", text))
    named = set(re.findall(r"`(?:\.venv/bin/python )?([\w.]+(?:/[\w.]*)+|\w+\.(?:py|md|txt))`", text)) - planned
    assert len(named) > 20
    assert sorted(name for name in named if not (Path(ROOT) / name).exists()) == []


@pytest.mark.parametrize("target", ["test", "slow", "lint", "bench"])
def test_the_make_targets_of_the_contributors_guide_exist(target):
    assert f"`make {target}`" in (Path(ROOT) / "CONTRIBUTING.md").read_text()
    assert re.search(rf"^{target}:", (Path(ROOT) / "Makefile").read_text(), re.MULTILINE)


def test_decisions_are_in_order_within_their_topic_and_a_number_means_one():
    text = (Path(ROOT) / "docs" / "decisions.md").read_text()
    topics = [
        [int(number) for number in re.findall(r"^\*\*(\d+)\. ", topic, re.MULTILINE)]
        for topic in re.split(r"^## ", text, flags=re.MULTILINE)[1:]
    ]
    numbers = [number for topic in topics for number in topic]
    assert len(numbers) > 150 and len(set(numbers)) == len(numbers)
    assert topics == [sorted(topic) for topic in topics]
    files = [path for folder in ("clip_transforms", "pipelines", "docs") for path in (Path(ROOT) / folder).rglob("*")]
    referred = {
        int(number)
        for path in files
        if path.suffix in (".py", ".md", ".js")
        for number in re.findall(r"\bdecision (\d+)", path.read_text())
    }
    assert referred and referred <= set(numbers)
