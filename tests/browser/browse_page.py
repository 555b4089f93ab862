"""A running `browse` and its page in a real browser, for the tests of the page."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT

sys.path.append(os.path.join(ROOT, "tests", "browsing"))
from browse_client import HOSTILE, make_dataset  # noqa: E402, F401

from benchmarks.datasets import write_rows  # noqa: E402

WIDTHS, SCHEMES = (360, 768, 1280), ("light", "dark")


@contextlib.contextmanager
def serving(dataset, *flags):
    """The address of a running command."""
    argv = [sys.executable, "-m", "pipelines.browse", "--input", str(dataset), "--port", "0", "--no_open", *flags]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        try:
            lines = [process.stdout.readline() for _ in range(2)]
            address = re.match(r"http://127\.0\.0\.1:\d+/\S*", lines[1])[0]
            state = {"ready": False}
            while "token" not in address and not (state["ready"] and state["words"] != "loading"):
                with urllib.request.urlopen(f"{address}api/state", timeout=30) as answer:
                    state = json.load(answer)
                time.sleep(0.05)
            yield address
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(20)


@pytest.fixture(scope="module", name="made")
def made_dataset(tmp_path_factory, tiny_checkpoint):
    return make_dataset(tmp_path_factory.mktemp("made"), tiny_checkpoint)


@pytest.fixture(scope="module", name="address")
def served_address(made):
    with serving(made / "out") as address:
        yield address


@pytest.fixture(scope="module", name="many")
def served_many(tmp_path_factory):
    """The address of 150 rows whose model and sources are gone."""
    vectors = np.random.default_rng(0).standard_normal((150, 8)).astype(np.float32)
    rows = {"image_embedding": vectors / np.linalg.norm(vectors, axis=1, keepdims=True), "d": 8}
    rows |= {"caption": [f"row number {i}" for i in range(150)], "clip_score": np.linspace(0, 1, 150, dtype=np.float32)}
    rows |= {name: [64] * 150 for name in ("width", "height")} | {"image_sha256": ["0" * 64] * 150}
    labels = {"animals": [{"label": ["cat", "dog"] * 75, "probability": [0.5] * 150}]}
    with serving(write_rows(tmp_path_factory.mktemp("many") / "out", [rows], labels)) as address:
        yield address


@pytest.fixture(name="open_page")
def page_opener(browser):
    """Open an address in a context of its own. At the end nothing was loaded from elsewhere, and no error was said."""
    contexts, asked, said = [], [], []

    def open_page(address, width=1280, scheme="light", **arguments):
        context = browser.new_context(
            viewport={"width": width, "height": 800}, color_scheme=scheme, reduced_motion="reduce", **arguments
        )
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(15_000)
        page.on("request", lambda request: asked.append((address, request.url)))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("dialog", lambda dialog: said.append(f"dialog {dialog.message}"))
        page.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
        page.goto(address)
        return page

    yield open_page
    for context in contexts:
        context.close()
    home = [re.match(r"http://[^/]+/", of)[0] for of, _ in asked]
    assert [url for (_, url), of in zip(asked, home, strict=True) if not url.startswith((of, "data:", "blob:"))] == []
    assert [text for text in said if "Failed to load resource" not in text] == []  # lost pictures are such


def search(page, words):
    page.get_by_role("searchbox").fill(words)
    page.keyboard.press("Enter")
    page.get_by_role("status").filter(has_text="nearest first").wait_for()
    page.locator("#found[aria-busy=false]").wait_for()


def keys(page):
    return [label.removeprefix("Select ") for label in attributes(page, ".tick input", "aria-label")]


def attributes(page, selector, name):
    return [one.get_attribute(name) for one in page.locator(selector).all()]


def shoot(page, name):
    """Keep a picture of the page, if somebody wants to look at it."""
    if folder := os.environ.get("CLIP_TRANSFORMS_SCREENSHOTS"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=f"{folder}/{name}.png")
