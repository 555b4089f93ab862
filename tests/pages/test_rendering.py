"""Texts of a page: cut, escaped, and powerless."""

import pytest
from html_page import Page
from markupsafe import escape

from clip_transforms.pages.rendering import cut, render, share

HOSTILE = ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "\u202eevil", "a" * 10_000, "</title>'&{{1}}"]


@pytest.mark.parametrize("text", [*HOSTILE, '"' * 500, "語" * 500, "\ud800", "a\n\nb"], ids=range(9))
def test_a_cut_text_takes_little_room_however_it_is_escaped(text):
    shown = cut(text, 60)
    assert len(escape(shown).encode("utf-8", "replace")) <= 60 + 3
    assert " ".join(text.split()).startswith(shown.removesuffix("…"))


def test_a_text_that_fits_is_left_whole():
    assert cut("a red star", 10) == "a red star" and cut("a red star", 9) == "a red sta…"


def test_a_share_of_nothing_is_no_number():
    assert share(1, 8) == "12.5\N{NO-BREAK SPACE}%" and share(0, 0) == ""


def test_a_page_without_scripts_forbids_all():
    page = Page(render("base.html", {}))
    assert page.scripts == [] and "script-src 'none'" in [a["content"] for _, a in page.tags if "http-equiv" in a][0]
