"""What the page of `browse` says and stops where a dataset, a source or the server is not as it should be."""

import numpy as np
import pytest
from browse_page import HOSTILE, made_dataset, page_opener, served_address, served_many, serving, shoot  # noqa: F401
from chromium import needs_chromium, started_browser, sync_api  # noqa: F401

from benchmarks.datasets import write_rows

# Two to three minutes: a browser, and a server with a model for each dataset. It needs packages beyond PyPI's.
pytestmark = [
    pytest.mark.slow,
    needs_chromium,
]


def test_hostile_captions_are_texts(open_page, address):
    page = open_page(address)
    page.locator("#found li").first.wait_for()
    assert page.title() == "out – browse"
    for key in HOSTILE:
        card = page.locator("#found li").filter(has=page.locator(f".tick input[aria-label='Select {key}']"))
        assert card.locator(".words").text_content() == HOSTILE[key].strip()[:400] + ("…" if key == "long" else "")
        assert card.bounding_box()["height"] < 400
        card.locator(".open").click()
        page.locator("#known .values").first.wait_for()
        caption = page.locator("#sample-caption")
        assert caption.text_content() == HOSTILE[key].strip() and caption.bounding_box()["height"] < 250
        if key in ("long", "rtl"):
            shoot(page, f"browse-{key}")
        page.keyboard.press("Escape")
    assert page.title() == "out – browse" and page.locator("#found img[src='x']").count() == 0


def test_a_policy_stops_a_script_that_escaped(browser, address):
    """The second fence: were a text of the data ever part of the page's HTML, nothing in it would run."""
    context = browser.new_context()
    page, said = context.new_page(), []
    page.on("console", lambda message: said.append(message.text))

    def escape(route):
        answer = route.fetch()
        route.fulfill(
            response=answer, body=answer.text().replace("</main>", f"{HOSTILE['script']}{HOSTILE['onerror']}")
        )

    page.route(address, escape)
    page.goto(address)
    page.locator("#found li").first.wait_for()
    assert page.locator("img[src=x]").count() == 1 and page.title() == "out – browse"
    assert sum("Content Security Policy" in text for text in said) >= 2
    context.close()


def test_sources_and_a_model_that_are_gone_are_said(open_page, many):
    page = open_page(many)
    page.locator(".lost").first.wait_for()
    box = page.locator(".lost").first.inner_text()
    assert "000000" in box and "its source is gone" in box
    page.get_by_text("Words and pictures cannot be searched for").wait_for()
    page.get_by_role("searchbox").fill("a cat")
    page.keyboard.press("Enter")
    assert "cannot be searched for" in page.get_by_role("alert").inner_text()
    shoot(page, "browse-gone")
    page.get_by_role("searchbox").fill("")
    page.keyboard.press("Enter")
    page.get_by_text("150 rows.").wait_for()


def test_an_empty_dataset_is_said(open_page, tmp_path):
    empty = {"image_embedding": np.empty((0, 8), np.float32), "caption": [], "d": 8}
    with serving(write_rows(tmp_path / "out", [empty])) as address:
        page = open_page(address)
        page.get_by_text("There is nothing in this dataset that could be shown.").wait_for()
        shoot(page, "browse-empty")


def test_a_dataset_that_is_being_read_is_said(browser, address):
    context = browser.new_context(viewport={"width": 768, "height": 400})
    page, answers = context.new_page(), [0.0, 0.41, 0.98]

    def answer(route):
        if answers:
            fields = {"ready": False, "progress": answers.pop(0), "failure": "", "words": "loading", "name": "out"}
            route.fulfill(json=fields)
        else:
            route.continue_()

    page.route("**/api/state", answer)
    page.goto(address)
    page.get_by_text("Reading the dataset: 41").wait_for()
    assert page.get_by_role("progressbar", name="Reading the dataset").is_visible()
    shoot(page, "browse-loading")
    page.get_by_text("34 rows.").wait_for()
    assert not page.get_by_role("progressbar").is_visible()
    page.route(
        "**/api/state", lambda route: route.fulfill(json={"ready": False, "failure": "a part is gone", "name": "out"})
    )
    page.reload()
    page.get_by_role("alert").filter(has_text="The dataset cannot be shown: a part is gone").wait_for()
    context.close()


def test_a_server_that_has_ended_is_said(open_page, tmp_path):
    rows = {"image_embedding": [[1.0, 0.0]], "d": 2}
    with serving(write_rows(tmp_path / "out", [rows])) as address:
        page = open_page(address)
        page.locator("#found li").first.wait_for()
    page.get_by_role("button", name="Search", exact=True).click()
    assert "has it been ended?" in page.get_by_role("alert").inner_text()


def test_the_token_opens_the_page_and_leaves_the_address(open_page, tmp_path):
    rows = {"image_embedding": [[1.0, 0.0]], "d": 2}
    with serving(write_rows(tmp_path / "out", [rows]), "--token") as address:
        page = open_page(address)
        page.locator("#found li").first.wait_for()
        assert "token" not in page.url
        bare = open_page(page.url)  # another context: it has no cookie
        assert "with its token" in bare.locator("body").inner_text()
