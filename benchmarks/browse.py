"""Start `browse` as a user does, and ask it many things: `python -m benchmarks.browse [--rows N] [--index]`.

It writes a dataset of so many rows, prints the seconds from the start of the command until the page is
ready (first, and again with what was kept), and the median milliseconds of an answer, as a ratio to the bare product of
one query with the matrix too. With `--soak MINUTES --input OUT` it sends random questions, looks and uploads to a real
dataset instead, and prints the memory of the server from time to time.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import io
import json
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.datasets import write_rows
from benchmarks.machine import print_facts, timed
from clip_transforms import index_embeddings

PART_ROWS, D, CLUSTERS, ASKED = 10_000, 512, 2_000, 40
_WORDS = "a red photo of green star white heart small picture the at center blue dog cat on brown".split()


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000, help="rows, in parts of 10,000 (%(default)s)")
    parser.add_argument("--index", action="store_true", help="make an index too, and measure with it")
    parser.add_argument("--folder", help="folder for the dataset, which stays; by default a temporary one")
    parser.add_argument("--soak", type=float, metavar="MINUTES", help="send random requests for so long")
    parser.add_argument("--input", help="dataset for --soak")
    options = parser.parse_args(argv)
    print_facts()
    if options.soak:
        _soak(options.input, 60 * options.soak)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(options.folder or temporary)
        dataset = folder / f"rows-{options.rows}"
        if not (dataset / "_SUCCESS").exists():
            write_rows(dataset, _parts(options.rows), {"animals": _labels(options.rows)}, ["licence"])
        _measure(dataset, folder / "cache", options.rows, [])
        if options.index:
            index = folder / f"index-{options.rows}"
            index_embeddings(dataset, index)
            _measure(dataset, folder / "cache-with-index", options.rows, ["--index", str(index)])


class Server:
    """A running `browse`; use it as a context manager."""

    def __init__(self, dataset: object, *flags: str):
        """Start the command, and wait until it prints its address."""
        self.started = time.perf_counter()
        command = [
            sys.executable,
            "-m",
            "pipelines.browse",
            "--input",
            str(dataset),
            "--no_open",
            "--port",
            "0",
            *flags,
        ]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        found = None
        while not found:
            line = self._process.stdout.readline()
            assert line, "browse ended"
            found = re.search(r"http://127\.0\.0\.1:(\d+)/", line)
        self._connection = http.client.HTTPConnection("127.0.0.1", int(found[1]), timeout=300)

    def ask(self, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        """Send a request as the page does; status and body of the answer."""
        try:
            return self._ask(path, body)
        except ConnectionError:  # it was idle for seconds; a browser opens another
            self._connection.close()
            return self._ask(path, body)

    def _ask(self, path: str, body: bytes | None) -> tuple[int, bytes]:
        headers = {"x-clip-transforms": "browse"}
        self._connection.request("GET" if body is None else "POST", path, body, headers)
        with self._connection.getresponse() as answer:
            return answer.status, answer.read()

    def search(self, **question: Any) -> Any:
        """Ask a question."""
        status, answer = self.ask("/api/search", json.dumps(question).encode())
        assert status == 200, answer
        return json.loads(answer)

    def wait(self) -> float:
        """Wait until the dataset is loaded; seconds since the start of the command."""
        while True:
            state = json.loads(self.ask("/api/state")[1])
            assert not state["failure"], state["failure"]
            if state["ready"]:
                return time.perf_counter() - self.started
            time.sleep(0.02)

    def memory(self, of: str = "RssAnon") -> float:
        """Memory of the process in MB; RssAnon leaves out the files that are mapped into memory."""
        return int(re.search(rf"{of}:\s+(\d+)", Path(f"/proc/{self._process.pid}/status").read_text())[1]) / 1024

    def __enter__(self) -> Server:
        """The server itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """End it as Ctrl-C would."""
        self._process.send_signal(signal.SIGTERM)
        assert self._process.wait(20) == 0


def _measure(dataset: Path, cache: Path, rows: int, flags: list[str]) -> None:
    seconds = []
    for _ in range(2):
        with Server(dataset, "--cache", str(cache), *flags) as server:
            seconds.append(server.wait())
            if len(seconds) == 1:
                continue
            asked, what = _questions(rows), f"{rows:,} rows{', index' if flags else ''}"
            for name, questions in asked.items():
                server.search(**next(questions))
                taken = [timed(lambda q=q: server.search(**q)) for q in (next(questions) for _ in range(ASKED))]
                low, high = statistics.median(taken), max(taken)
                print(f"{what}: {name:24} {1e3 * low:6.1f} ms, at most {1e3 * high:.1f} ms")
            print(f"memory of its own {server.memory():,.0f} MB, with mapped files {server.memory('VmRSS'):,.0f} MB")
    kept = sum(file.stat().st_size for file in cache.rglob("*") if file.is_file())
    print(
        f"ready after {seconds[0]:.1f} s the first time, {seconds[1]:.1f} s then; {kept / 1e6:,.0f} MB kept", flush=True
    )
    if not flags:
        matrix, query = _unit(np.random.default_rng(2).standard_normal((rows, D), np.float32)), np.ones(D, np.float32)
        products = [timed(lambda: matrix @ query) for _ in range(ASKED)]
        print(f"the bare product of one query with {rows:,} rows: {1e3 * statistics.median(products):.1f} ms")


def _questions(rows: int) -> dict[str, Iterator[dict[str, Any]]]:
    """Return endless questions of each kind."""
    rng = np.random.default_rng(1)

    def vectors() -> Iterator[str]:
        while True:
            yield base64.b64encode(_unit(rng.standard_normal((1, D), np.float32)).tobytes()).decode()

    def endless(make: Any) -> Iterator[dict[str, Any]]:
        while True:
            yield make()

    some = vectors()
    return {
        "a picture": endless(lambda: {"vector": next(some)}),
        "more like this": endless(lambda: {"like": int(rng.integers(rows))}),
        "a picture and a label": endless(lambda: {"vector": next(some), "labels": {"animals": "cat"}}),
        "a new condition": endless(lambda: {"where": f"clip_score > {rng.random():.6f} and animals.label = 'dog'"}),
        "a condition, few rows": endless(
            lambda: {"vector": next(some), "where": f"clip_score > {0.99 + rng.random() / 1e3:.6f}"}
        ),
        "the next page": endless(lambda: {"first": int(rng.integers(rows // 2))}),
        "a column not in memory": endless(lambda: {"where": f"licence = 'cc-{rng.integers(1 << 30)}'"}),
    }


def _parts(rows: int) -> Iterator[dict[str, Any]]:
    rng = np.random.default_rng(0)
    first = _unit(rng.standard_normal((PART_ROWS, D), np.float32))
    centres = rng.standard_normal((CLUSTERS, D), np.float32)
    for part in range(-(-rows // PART_ROWS)):
        vectors = first * rng.choice(np.float32([-1, 1]), D)
        yield {
            "key": [f"{part:05d}{row:04d}" for row in range(PART_ROWS)],
            "caption": [" ".join(rng.choice(_WORDS, 8)) for _ in range(PART_ROWS)],
            "clip_score": rng.random(PART_ROWS, np.float32),
            "width": rng.integers(64, 4_000, PART_ROWS).astype(np.int32),
            "height": rng.integers(64, 4_000, PART_ROWS).astype(np.int32),
            "image_sha256": [f"{part * PART_ROWS + row:064x}" for row in range(PART_ROWS)],
            "image_embedding": _unit(
                centres[rng.integers(0, CLUSTERS, PART_ROWS)] + 0.8 * np.sqrt(np.float32(D)) * vectors
            ),
            "licence": [f"cc-{row % 7}" for row in range(PART_ROWS)],
            "d": D,
        }


def _labels(rows: int) -> list[dict[str, Any]]:
    rng = np.random.default_rng(3)
    of = [rng.integers(0, 2, PART_ROWS) for _ in range(-(-rows // PART_ROWS))]
    return [
        {"label": np.array(["cat", "dog"])[one].tolist(), "probability": rng.random(PART_ROWS, np.float32)}
        for one in of
    ]


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def _soak(dataset: str, seconds: float) -> None:
    """Send random requests, and print the memory twelve times."""
    rng, done = random.Random(0), Counter[str]()
    with Server(dataset) as server:
        server.wait()
        state = json.loads(server.ask("/api/state")[1])
        begun, printed = time.perf_counter(), -1
        while (passed := time.perf_counter() - begun) < seconds:
            kind = rng.choices(
                ["words", "like", "filter", "pictures", "sample", "upload", "wrong"], [6, 4, 4, 8, 4, 3, 2]
            )[0]
            status, count = _click(server, kind, state, rng)
            assert status < 500, (kind, status)
            done[kind] += count
            if int(12 * passed / seconds) > printed:
                printed = int(12 * passed / seconds)
                own, whole, threads = (server.memory(of) for of in ("RssAnon", "VmRSS", "Threads"))
                print(
                    f"{passed / 60:5.1f} min: {own:,.0f} MB of its own, {whole:,.0f} MB with mapped files, "
                    f"{1024 * threads:.0f} threads; {sum(done.values()):,} requests",
                    flush=True,
                )
        print(dict(done), f"{server.memory():,.0f} MB of its own at the end", flush=True)


def _click(server: Server, kind: str, state: dict[str, Any], rng: random.Random) -> tuple[int, int]:
    """Send what a click of a person sends; the status, and the number of requests."""
    rows = state["of"]
    if kind == "words":
        text = " ".join(rng.choices(_WORDS, k=rng.randint(1, 12))) + f" {rng.random():.3f}"
        return _post(server, {"text": text, "first": rng.choice([0, 60, 120])}), 1
    if kind == "like":
        return _post(server, {"like": rng.randrange(rows)}), 1
    if kind == "filter":
        low = rng.random()
        labels = {name: rng.choice(of)[0] for name, of in state["labels"].items() if of and rng.random() < 0.5}
        return _post(
            server, {"least": low, "labels": labels, "where": rng.choice(["", f"width > {low}", "nonsense +"])}
        ), 1
    if kind == "pictures":
        places = [rng.randrange(rows) for _ in range(12)]
        return max(server.ask(f"/picture/x/{rng.choice(['square', 'whole'])}/{place}")[0] for place in places), 12
    if kind == "sample":
        return server.ask(f"/api/sample/{rng.randrange(rows)}")[0], 1
    if kind == "upload":
        data = io.BytesIO()
        picture = Image.effect_noise((rng.randint(8, 900), rng.randint(8, 900)), 80).convert("RGB")
        picture.save(data, rng.choice(["JPEG", "PNG", "WEBP"]))
        return server.ask("/api/picture", data.getvalue()[: rng.choice([100, 1 << 30, 1 << 30])])[0], 1
    wrong = rng.choice([{"text": 5}, {"like": rows}, [], {"vector": "x"}, {"first": -1}, {"where": "1; drop table x"}])
    return _post(server, wrong), 1


def _post(server: Server, question: Any) -> int:
    return server.ask("/api/search", json.dumps(question).encode())[0]


if __name__ == "__main__":
    main()
