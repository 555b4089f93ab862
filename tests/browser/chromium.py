"""Debian's chromium for the tests of pages, with Playwright; `make test-browser` installs both."""

import shutil

import pytest

sync_api = pytest.importorskip("playwright.sync_api", reason="make test-browser installs it")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_chromium = pytest.mark.skipif(not CHROMIUM, reason="there is no chromium here; make test-browser installs it")
# Whatever a page asks of another host fails at once, and is seen.
FLAGS = ["--no-sandbox", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", "--disable-background-networking"]


@pytest.fixture(scope="module", name="browser")
def started_browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()
