"""The list of commands, and the help of each: groups that are named alike, and examples that work."""

import importlib
import re
import shlex
from pathlib import Path

import pytest
from conftest import ROOT, browse, command, files_of, make_folder, make_tar, parser_of

from pipelines.command_line import GROUPS, UsageError
from pipelines.commands import COMMANDS


def main_of(name):
    return importlib.import_module(f"pipelines.{name}").main


def test_the_list_has_every_command_in_a_line():
    files = (Path(ROOT) / "pipelines").glob("*.py")
    assert {path.stem for path in files if f'_command("pipelines.{path.stem}")' in path.read_text()} == {*COMMANDS}
    for argv in ((), ("--help",)):
        done = command("pipelines", *argv)
        assert (done.returncode, done.stderr) == (0, "")
        lines = [line.split(maxsplit=1) for line in done.stdout.splitlines() if line.startswith("  ")]
        assert lines == [list(item) for item in COMMANDS.items()]
        assert max(map(len, done.stdout.splitlines())) <= 100


def test_a_name_behind_the_package_runs_that_command(tmp_path):
    done = command("pipelines", "models", "--check", "demo")
    assert done.returncode == 0 and done.stdout.startswith("a CLIP with sizes of its own")
    done = command("pipelines", "serch", "--input", str(tmp_path))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: 'serch' is not a command; did you mean search?\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_the_flags_of_a_command_are_grouped_as_in_all_others(name):
    parser = parser_of(name)
    text = parser.format_help()
    headings = [line[:-1] for line in text.splitlines() if line.endswith(":") and not line.startswith(" ")]
    shown = [title for title in GROUPS if title in headings]
    assert headings == [*shown, "help", "examples"] and "output" in shown
    placed = [action for group in parser._action_groups for action in group._group_actions]
    assert len(placed) == len(parser._actions)
    usage = text[: text.index("\n\n")]
    required = [a.option_strings or [a.metavar] for a in parser._actions if (a.help or "").startswith("(required)")]
    assert usage.startswith(f"usage: python -m pipelines.{name}") and usage.endswith("[flags]")
    assert all(flags[0] in usage for flags in required)
    assert len(parser.examples) == (1 if name == "demo" else 2)
    assert all(f"  {example}\n" in text for example in parser.examples)


def test_the_page_of_runners_names_the_commands_that_take_no_flags_of_beam():
    (line,) = re.findall(r"^ *All commands but (.*) take them\.$", (Path(ROOT) / "docs/runners.md").read_text(), re.M)
    without = [name for name in COMMANDS if "Beam's own flags may follow" not in squeezed(parser_of(name))]
    assert sorted(re.findall(r"`(\w+)`", line)) == sorted(without)


def squeezed(parser):
    return " ".join(parser.format_help().split())


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A folder with everything that the examples name."""
    make_folder(tmp_path / "photos", 8)
    (tmp_path / "web").mkdir()
    make_tar(tmp_path / "web" / "00000.tar", 3)
    (tmp_path / "animals.txt").write_text("red star\nblue circle\n")
    (tmp_path / "colors.txt").write_text("red\nblue\n")
    rows = [f"{i:06d}.jpg,{['red star', 'blue circle'][i % 2]}\n" for i in range(8)]
    (tmp_path / "truth.csv").write_text("".join(["key,class\n", *rows]))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("without_beam")
def test_every_example_works(workplace, capsys):
    """In the order of the list: what one command wrote, later ones read. The demo has a test of its own."""
    later = ("models", "inspect")  # they look at what the others need or make
    names = [name for name in COMMANDS if name not in ("demo", *later)] + [name for name in COMMANDS if name in later]
    for name in names:
        for example in parser_of(name).examples:
            argv = shlex.split(example.replace("ViT-B/32", "demo"))
            assert argv[:3] == ["python", "-m", f"pipelines.{name}"]
            if name == "browse":  # it ends at a signal
                assert "http://127.0.0.1" in browse(*argv[3:])
                continue
            assert main_of(name)(argv[3:]) == 0, example
            printed = capsys.readouterr()
            assert printed.out and "error" not in printed.err, example


@pytest.mark.usefixtures("without_beam")
def test_quiet_leaves_warnings_alone_and_changes_no_file(workplace, capsys):
    command_line = ["--input", "photos", "--model", "demo", "--exclude", "nothing.jpg"]
    written = []
    for output, flags in (("loud", []), ("still", ["--quiet"])):
        assert main_of("embed")([*command_line, "--output", output, *flags]) == 0
        printed = capsys.readouterr()
        warning = "warning: --exclude nothing.jpg matches nothing\n"
        assert warning in printed.out and (printed.out == warning) == bool(flags) and printed.err == ""
        assert (
            main_of("filter")(["--input", output, "--output", f"{output}-kept", "--top_fraction", "0.3", *flags]) == 0
        )
        assert bool(capsys.readouterr().out) != bool(flags)
        written.append((files_of(workplace / output), (workplace / f"{output}-kept" / "selection.json").exists()))
    assert written[0] == written[1] and written[0][1]
    # Exit codes stay, and say what is not complete.
    (workplace / "photos" / "broken.jpg").write_bytes(b"\xff\xd8\xff broken")
    assert main_of("embed")(["--input", "photos", "--model", "demo", "--output", "loud", "--quiet"]) == 3
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("not complete: ")
    assert main_of("models")(["--check", "demo", "--quiet"]) == 0 and capsys.readouterr().out == ""
    assert main_of("models")(["--check", "demo"]) == 0 and capsys.readouterr().out != ""


def test_quiet_is_refused_where_nothing_would_be_left(workplace):
    for name, argv in (("search", ["--input", "out", "--text", "a star"]), ("models", [])):
        with pytest.raises(UsageError, match="--quiet leaves nothing of"):
            main_of(name)([*argv, "--quiet"])


def test_a_warning_of_several_lines_stays_whole(capsys):
    from pipelines import terminal
    from pipelines.evaluation_lines import _WARNING

    terminal.be_quiet(True)
    terminal.say("note: small")
    terminal.say(_WARNING)
    assert capsys.readouterr().out == f"{_WARNING}\n" and _WARNING.count("\n") == 2
