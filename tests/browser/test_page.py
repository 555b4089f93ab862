"""The page of `browse` in a real browser, Debian's chromium with Playwright; `make test-browser` installs both."""

import csv
import re

import pytest
from browse_page import SCHEMES, WIDTHS, keys, made_dataset, page_opener, search, served_address, served_many, shoot  # noqa: F401
from chromium import needs_chromium, started_browser, sync_api  # noqa: F401
from conftest import picture

# Two to three minutes: a browser, and a server with a model for each dataset. It needs packages beyond PyPI's.
pytestmark = [
    pytest.mark.slow,
    needs_chromium,
]


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_a_typed_query_shows_pictures_at_every_width_and_in_both_modes(open_page, address, width, scheme):
    page = open_page(address, width, scheme, bypass_csp=True)  # to ask it for its width
    page.locator("#found li").first.wait_for()
    assert page.title() == "out – browse" and len(keys(page)) == 34
    search(page, "a photo of a cat")
    assert len(keys(page)) == 33
    first = page.locator(".open img").first
    assert first.evaluate("image => image.decode().then(() => image.naturalWidth)") == 256
    page.locator("#filters summary").click()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    shoot(page, f"browse-{width}-{scheme}")
    page.locator(".open").first.click()
    page.locator("#known table").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator("#sample").evaluate("dialog => dialog.scrollWidth <= dialog.clientWidth")
    shoot(page, f"browse-{width}-{scheme}-sample")
    dark = page.evaluate("getComputedStyle(document.documentElement).backgroundColor") == "rgb(21, 22, 26)"
    assert dark == (scheme == "dark")


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", (360, 1280))
def test_axe_finds_nothing_serious(open_page, address, width, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="make test-browser installs it")
    page = open_page(address, width, scheme, bypass_csp=True)  # axe is a script of somebody else
    page.locator("#found li").first.wait_for()
    page.locator("#filters summary").click()
    page.locator("#same summary").click()
    page.locator(".tick input").first.check()
    states = [lambda: None, lambda: page.locator(".open").nth(2).click(), lambda: complain(page)]
    for reach in states:
        reach()
        page.wait_for_timeout(300)
        found = axe.Axe().run(page).response["violations"]
        serious = [(one["id"], [n["html"][:200] for n in one["nodes"]]) for one in found if one["impact"] != "minor"]
        assert serious == []


def complain(page):
    page.keyboard.press("Escape")
    page.get_by_label("Condition").fill("clip_scor > 1")
    page.keyboard.press("Enter")
    page.get_by_role("alert").wait_for()


def test_a_picture_is_found_by_choosing_dropping_and_pasting_it(open_page, address, tmp_path):
    page = open_page(address, bypass_csp=True)  # a script of this test drops and pastes
    page.locator("#found li").first.wait_for()
    (tmp_path / "chosen.png").write_bytes(picture(7, format_="PNG"))
    page.locator("#file").set_input_files(tmp_path / "chosen.png")
    page.get_by_text("More like chosen.png").wait_for()
    page.locator("#found[aria-busy=false]").wait_for()
    assert "000007" in keys(page)[:2]
    transfer = """([name, data]) => {
        const transfer = new DataTransfer();
        transfer.items.add(new File([new Uint8Array(data)], name, { type: "image/jpeg" }));
        return transfer;
    }"""
    for seed, kind in ((11, "drop"), (3, "paste")):
        files = page.evaluate_handle(transfer, [f"{kind}.jpg", list(picture(seed))])
        event = "new DragEvent('drop', { dataTransfer: files, bubbles: true, cancelable: true })"
        event = event if kind == "drop" else "new ClipboardEvent('paste', { clipboardData: files, bubbles: true })"
        page.evaluate(f"files => document.body.dispatchEvent({event})", files)
        page.get_by_text(f"More like {kind}.jpg").wait_for()
        page.locator("#found[aria-busy=false]").wait_for()
        assert f"{seed:06d}" in keys(page)[:2]
    page.locator("#file").set_input_files({"name": "x.jpg", "mimeType": "image/jpeg", "buffer": b"no picture"})
    assert "no picture that can be read" in page.get_by_role("alert").inner_text()
    page.get_by_role("button", name="Remove").click()
    page.get_by_text("34 rows.").wait_for()


def test_more_like_this_and_back(open_page, address):
    page = open_page(address)
    search(page, "a cat")
    before = keys(page)
    page.locator(".frame").nth(4).hover()
    page.get_by_role("button", name=f"More like {before[4]}", exact=True).click()
    page.get_by_text(f"More like {before[4]}", exact=True).wait_for()
    page.locator("#found[aria-busy=false]").wait_for()
    assert keys(page)[0] == before[4] and page.get_by_role("searchbox").input_value() == ""
    page.go_back()
    page.locator("#found[aria-busy=false]").wait_for()
    page.get_by_role("status").filter(has_text="33 rows, nearest first").wait_for()
    assert page.get_by_role("searchbox").input_value() == "a cat"
    page.wait_for_timeout(300)
    assert keys(page) == before
    page.reload()
    page.get_by_role("status").filter(has_text="33 rows, nearest first").wait_for()
    assert keys(page) == before


def test_filters_narrow_and_are_cleared(open_page, address):
    page = open_page(address)
    page.locator("#found li").first.wait_for()
    page.locator("#filters summary").click()
    page.get_by_label("Condition").fill("kind = '1'")
    page.keyboard.press("Enter")
    page.get_by_text("7 rows.").wait_for()
    page.get_by_label("Shorter side, at least").select_option("1024")
    page.get_by_text("Nothing was found.").wait_for()
    assert page.get_by_text("No row fits these filters").is_visible()
    shoot(page, "browse-nothing")
    page.get_by_role("button", name="Clear filters").click()
    page.get_by_text("34 rows.").wait_for()
    page.get_by_label("Label: colors").select_option("it's green")
    page.locator("#same summary").click()
    command = page.locator("#command")
    command.filter(has_text="it''s green").wait_for()
    assert "pipelines.filter" in command.inner_text()
    page.get_by_label("from", exact=True).fill("high")
    page.keyboard.press("Tab")
    assert "it must be a number such as 0.28" in page.get_by_role("alert").inner_text()


def test_the_selection_is_copied_and_downloaded(open_page, address, made, tmp_path):
    page = open_page(address, permissions=["clipboard-read", "clipboard-write"])
    page.locator("#found li").first.wait_for()
    page.locator("#same summary").click()
    said = page.get_by_text("It finds all rows of this search, selected or not.")
    assert not said.is_visible()
    chosen = [keys(page)[place] for place in (1, 5)]
    for key in chosen:
        page.get_by_label(f"Select {key}", exact=True).check()
    assert page.get_by_text("2 selected").is_visible() and said.is_visible()
    page.get_by_role("button", name="Copy keys").click()
    page.get_by_role("button", name="Copied").wait_for()
    page.get_by_role("searchbox").focus()
    page.keyboard.press("Control+V")
    assert page.get_by_role("searchbox").input_value().split() == chosen
    with page.expect_download() as download:
        page.get_by_role("button", name="Download").click()
    download.value.save_as(tmp_path / "selection.csv")
    rows = list(csv.reader((tmp_path / "selection.csv").open()))
    assert rows[0] == ["shard", "row", "key"]
    assert rows[1:] == [[str(made / "a.tar"), "1", chosen[0]], [str(made / "a.tar"), "5", chosen[1]]]
    page.reload()
    page.get_by_text("2 selected").wait_for()
    assert page.get_by_label(f"Select {chosen[1]}", exact=True).is_checked()
    page.get_by_role("button", name="Clear", exact=True).click()
    assert not page.get_by_label(f"Select {chosen[0]}", exact=True).is_checked() and said.is_hidden()


@pytest.mark.parametrize("key, named", [("000002.jpg", "shard, a piece of the folder"), ("000002", "shard")])
def test_the_shard_of_a_picture_in_a_folder_is_not_taken_for_its_file(open_page, address, key, named):
    page = open_page(address)
    page.locator("#found li").first.wait_for()
    card = page.locator("#found li").filter(has=page.get_by_label(f"Select {key}", exact=True))
    card.locator(".open").click()
    page.locator("#known .values").first.wait_for()
    names = page.locator("#known .values").first.locator("dt").all_inner_texts()
    assert [name for name in names if name.startswith(("file", "shard"))] == ["file"] * ("." in key) + [named]


def test_the_keyboard_alone_reaches_everything(open_page, address):
    page = open_page(address)
    page.locator("#found li").first.wait_for()
    focused = page.locator(":focus")
    page.keyboard.press("Tab")
    assert focused.inner_text() == "Skip to the pictures"
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert focused.get_attribute("class") == "open"
    page.keyboard.press("/")
    page.keyboard.type("a cat")
    page.keyboard.press("Enter")
    page.get_by_role("status").filter(has_text="nearest first").wait_for()
    for _ in range(12):
        page.keyboard.press("Tab")
        if focused.get_attribute("class") == "open":
            break
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    place = int(focused.get_attribute("data-place"))
    assert place > 1
    page.keyboard.press("Enter")
    page.locator("#known .values").first.wait_for()
    key = page.locator("#sample-key").inner_text()
    page.keyboard.press("ArrowRight")
    page.locator("#sample-key").filter(has_text=re.compile(f"^(?!{re.escape(key)}$)")).wait_for()
    page.keyboard.press("ArrowLeft")
    page.locator("#sample-key").filter(has_text=re.compile(f"^{re.escape(key)}$")).wait_for()
    page.keyboard.press("Escape")
    assert not page.locator("#sample").is_visible() and int(focused.get_attribute("data-place")) == place
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    assert page.get_by_text("1 selected").is_visible()


def test_pages_come_by_scrolling(open_page, many):
    page = open_page(many)
    page.get_by_text("150 rows.").wait_for()
    for count in (60, 120, 150):
        page.locator("#found li").nth(count - 1).wait_for(state="attached")
        page.keyboard.press("End")
        page.locator("#found li").last.scroll_into_view_if_needed()
    assert keys(page) == [f"{i:06d}" for i in range(150)]
    assert not page.get_by_role("button", name="Show more").is_visible()


def test_the_same_search_again_is_no_step_back(open_page, address):
    page = open_page(address)
    search(page, "a cat")
    for _ in range(3):
        page.get_by_role("button", name="Search", exact=True).click()
        page.locator("#found[aria-busy=false]").wait_for()
    page.go_back()
    page.get_by_text("34 rows.").wait_for()
