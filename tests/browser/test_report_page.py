"""The page of `report` in a real browser; see `test_page.py`."""

import contextlib
import shutil

import pytest
from browse_page import HOSTILE, SCHEMES, WIDTHS, make_dataset, shoot
from chromium import needs_chromium, started_browser  # noqa: F401

from clip_transforms import report_embeddings

# Half a minute: a browser. It needs packages beyond PyPI's.
pytestmark = [
    pytest.mark.slow,
    needs_chromium,
]


@pytest.fixture(scope="module")
def report(tmp_path_factory, tiny_checkpoint):
    made = make_dataset(tmp_path_factory.mktemp("made"), tiny_checkpoint)
    report_embeddings(made / "out", made / "report.html")
    shutil.rmtree(made / "photos")
    report_embeddings(made / "out", made / "gone.html")
    return made


@contextlib.contextmanager
def opened(browser, file, width, scheme):
    """A page of a file; nothing but the file may be loaded, no error said, and no dialog opened."""
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme, bypass_csp=True)
    page, asked, said = context.new_page(), [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("dialog", lambda dialog: said.append(f"dialog {dialog.message}"))
    page.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
    page.goto(file.as_uri())
    yield page
    assert [url for url in asked if not url.startswith(("data:", file.as_uri()))] == [] and said == []
    context.close()


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_the_report_fits_and_loads_nothing(browser, report, width, scheme):
    with opened(browser, report / "report.html", width, scheme) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.title() == "out: 34 samples"
        shoot(page, f"report-{width}-{scheme}")
        texts = page.locator("body").inner_text()
        assert HOSTILE["script"] in texts or HOSTILE["onerror"] in texts
        page.locator("#plane").scroll_into_view_if_needed()
        page.locator("#plane").hover()
        assert page.locator("#point").is_visible()


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", (360, 1280))
@pytest.mark.parametrize("name", ["report.html", "gone.html"])
def test_axe_finds_nothing_serious_in_the_report(browser, report, name, width, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="make test-browser installs it")
    with opened(browser, report / name, width, scheme) as page:
        found = axe.Axe().run(page).response["violations"]
        serious = [(one["id"], [n["html"][:200] for n in one["nodes"]]) for one in found if one["impact"] != "minor"]
        assert serious == []
