"""Reasons, flags and limits that the documents name are those of the code."""

import re
from pathlib import Path

import pytest
from conftest import ROOT, parser_of

from pipelines.beam_options import beam_parser
from pipelines.commands import COMMANDS
from schemas.rejects import REASONS

PAGE = (Path(ROOT) / "docs" / "troubleshooting.md").read_text()
REASONS_OF_CODE = [f"{stage}: {reason}" for stage, reason in REASONS]
_STAGES = "|".join(sorted({stage for stage, _ in REASONS} | {"tokenize"}))
_OTHERS = {"--array", "--gpus", "--wrap", "--bucket", "--lifecycle"}  # flags of sbatch and of aws


def rows(page):
    """The cells of every row of every table, without heads and rules."""
    lines = [line for line in page.splitlines() if line.startswith("|") and not line.startswith("|---")]
    heads = {page.splitlines()[i - 1] for i, line in enumerate(page.splitlines()) if line.startswith("|---")}
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line not in heads]


def test_the_page_has_a_row_for_every_reject_reason_in_their_order():
    first = [row[0].strip("`") for row in rows(PAGE)]
    assert [cell for cell in first if re.match(rf"({_STAGES}): ", cell)] == REASONS_OF_CODE


@pytest.mark.parametrize("name", ["README.md", *sorted(f"docs/{p.name}" for p in (Path(ROOT) / "docs").glob("*.md"))])
def test_no_page_names_a_reason_that_does_not_exist(name):
    named = re.findall(rf"`((?:{_STAGES}): [^`]+)`", (Path(ROOT) / name).read_text())
    assert set(named) <= set(REASONS_OF_CODE)


def test_every_row_has_a_cause_and_a_cure_and_none_comes_twice():
    found = rows(PAGE)
    assert len(found) > len(REASONS)
    assert all(len(row) == 3 and all(row) for row in found)
    first = [row[0] for row in found]
    assert sorted(set(first)) == sorted(first)


@pytest.mark.parametrize("name", ["README.md", "docs/usage.md", "docs/troubleshooting.md"])
def test_every_flag_on_a_page_is_one_of_ours_or_of_beam(name):
    known = {
        name
        for parser in (*map(parser_of, COMMANDS), beam_parser())
        for action in parser._actions
        for name in action.option_strings
    }
    named = set(re.findall(r"--[a-z_]+", (Path(ROOT) / name).read_text()))
    assert len(named) > 10 and named - _OTHERS <= known


@pytest.mark.parametrize("flag", ["max_image_bytes", "max_caption_bytes", "max_image_pixels"])
def test_the_limits_on_the_page_are_the_defaults(flag):
    (shown,) = re.findall(rf"--{flag}` \(([\d,]+)\)", PAGE)
    assert int(shown.replace(",", "")) == parser_of("embed").get_default(flag)
