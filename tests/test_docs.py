"""What the documents say is what the code does."""

import importlib
import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
from conftest import ROOT, make_folder, make_parquet, make_tar

from pipelines import demo

README = (Path(ROOT) / "README.md").read_text()


def test_the_columns_page_is_fresh():
    spec = importlib.util.spec_from_file_location("columns", Path(ROOT) / "docs" / "columns.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    stale = "run `python docs/columns.py`"
    assert (Path(ROOT) / "docs" / "columns.md").read_text() == module.render(), stale


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands():
    """Every command of the README, one a line, with continued lines joined."""
    text = "\n".join(blocks("bash")).replace("\\\n", " ")
    return [line for line in text.splitlines() if line.strip() and not line.startswith("#")]


def test_the_make_targets_of_the_readme_exist():
    targets = re.findall(r"^(\w+):", (Path(ROOT) / "Makefile").read_text(), re.MULTILINE)
    named = [c.split()[1] for c in commands() if c.startswith("make ")]
    assert named and set(named) <= set(targets)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory, tiny_checkpoint):
    """A folder in which the README's commands can be typed: what they name lies in it."""
    path = tmp_path_factory.mktemp("readme")
    make_folder(path / "photos", 12)
    (path / "animals.txt").write_text("red star\nblue circle\n")
    (path / "colors.txt").write_text("red\nblue\n")
    (path / "photos.csv").write_text("path,caption\n" + "".join(f"photos/{i:06d}.jpg,number {i}\n" for i in range(9)))
    for folder in ("web", "more"):
        (path / folder).mkdir()
    for i in range(10):
        make_tar(path / "web" / f"{i:05d}.tar", 2, first=2 * i)
    make_parquet(path / "more" / "a.parquet", 3)
    state = safetensors.torch.load_file(tiny_checkpoint)
    safetensors.torch.save_file(state, path / "my-clip.safetensors")  # says no activation, like most files
    return path


@pytest.mark.timeout(300)
def test_every_command_of_the_readme_runs_as_it_stands(workplace, capfd, monkeypatch):
    """The first of each command in a process of its own, as it is typed, the others in this one."""
    monkeypatch.chdir(workplace)
    typed = set()
    lines = [c for c in commands() if c.startswith("python -m pipelines.")]
    assert len(lines) >= 7
    for line in lines:
        argv = shlex.split(line.removeprefix("python "), comments=True)
        module = argv[1]
        if module in typed:
            code = importlib.import_module(module).main(argv[2:])
        else:
            code = subprocess.run([sys.executable, *argv], timeout=100).returncode
        typed.add(module)
        printed = capfd.readouterr()
        assert code == 0, (line, printed.err)
        shown = {"--dry_run": "nothing was written", "pipelines.models": "parameters", "pipelines.label": "1 part"}
        expected = next((text for flag, text in shown.items() if flag in line), " = ")
        assert expected in printed.out, (line, printed.out)
    assert typed == {"pipelines.embed", "pipelines.label", "pipelines.models"}


def test_the_analysts_query_of_the_readme_answers(workplace):
    duckdb = pytest.importorskip("duckdb")
    query, rejects = blocks("sql")
    assert duckdb.connect().execute(rejects.replace("'out/", f"'{workplace}/out/")).fetchall() == []
    query = query.replace("'out/", f"'{workplace}/out/").replace("> 0.28", "> -1").replace("= 'cat'", "IS NOT NULL")
    assert len(duckdb.connect().execute(query).fetchall()) > 0


@pytest.mark.parametrize("block", blocks("python"), ids=lambda block: block.strip().splitlines()[0])
def test_the_python_of_the_readme_runs(block, workplace):
    photo = next((workplace / "photos").glob("*.jpg"))
    shutil.copy(photo, workplace / "cat.jpg")
    replaced = block.replace('"ViT-B/32"', '"demo"').replace("gs://web/shards/{00000..00999}.tar", "photos")
    replaced = replaced.replace("gs://web/clip", "out-python").replace("animals.json", "animals.txt")
    done = subprocess.run([sys.executable, "-c", replaced], capture_output=True, text=True, cwd=workplace, timeout=100)
    assert done.returncode == 0, done.stderr


@pytest.mark.timeout(200)
def test_the_demo_shows_everything_and_says_that_nothing_was_left_to_do_the_second_time(tmp_path, monkeypatch, capsys):
    argv = [sys.executable, "-m", "pipelines.demo"]
    first = subprocess.run(argv, capture_output=True, text=True, cwd=tmp_path, timeout=150)
    assert first.returncode == 0, first.stderr
    for piece in (
        "$ python -m pipelines.embed --input",
        "images    2,000 = 1,996 embedded + 4 rejected (4 decode: truncated) + 0 absent",
        "captions  2,000 = 1,976 embedded + 4 rejected (4 read: not UTF-8) + 20 absent; 4 cut at 77 tokens",
        "Five rows",
        "In DuckDB",
        "--input ~/Pictures",
    ):
        assert piece.lower() in first.stdout.lower(), piece
    shapes, colors = re.findall(r"(?:shapes|colors) ([\d,]+) of 1,996", first.stdout)
    assert min(int(n.replace(",", "")) for n in (shapes, colors)) > 0.98 * 1996
    monkeypatch.chdir(tmp_path)
    assert demo.main([]) == 0 and "nothing was left to do" in capsys.readouterr().out
