"""The benchmarks run on tiny inputs; their times are not checked."""

import importlib
import io
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import ROOT, make_folder
from PIL import Image

from benchmarks import commands, embed, inputs, peer
from clip_transforms.clip.tokenizer import default_tokenizer

MODULES = sorted(path.stem for path in (Path(ROOT) / "benchmarks").glob("*.py") if "__main__" in path.read_text())


@pytest.fixture
def bench(monkeypatch, capsys):
    """Run a benchmark in this process and return its output."""

    def run(name, *flags):
        module = importlib.import_module(f"benchmarks.{name}")
        monkeypatch.setattr(module, "print_facts", lambda: None)  # takes seconds
        module.main(list(map(str, flags)))
        return capsys.readouterr().out

    return run


@pytest.fixture
def in_process(monkeypatch):
    """Run commands in this process, which has imported everything already."""
    from pipelines.embed import main

    def run(argv):
        assert argv[:3] == [sys.executable, "-m", "pipelines.embed"] and main(argv[3:]) == 0
        return 1.0

    monkeypatch.setattr(commands, "seconds_of", run)


def test_every_benchmark_is_documented_and_those_of_make_bench_exist():
    text = "".join((Path(ROOT) / "docs" / name).read_text() for name in ("performance.md", "fidelity.md"))
    assert len(MODULES) > 10 and [name for name in MODULES if f"python -m benchmarks.{name}" not in text] == []
    assert set(re.findall(r"-m benchmarks\.(\w+)", (Path(ROOT) / "Makefile").read_text())) <= set(MODULES)


def test_captions_have_the_lengths_of_web_captions_and_are_distinct():
    captions = inputs.web_captions(3_000)
    lengths = default_tokenizer().tokenize(captions).lengths
    assert len(set(captions)) == 3_000 and inputs.web_captions(10) == inputs.web_captions(10)
    assert np.median(lengths) == 12 and 13 < lengths.mean() < 16 and lengths.min() == 3 and 60 < lengths.max() <= 77


def test_pictures_have_the_size_of_photographs():
    for data in inputs.photographs(2, 320, 240):
        assert Image.open(io.BytesIO(data)).size == (320, 240)
        assert 1 < 8 * len(data) / (320 * 240) < 4  # bits per pixel


def test_captions_by_length(bench):
    said = bench("captions", "--model", "demo", "--captions", 40, "--padded", 8, "--rounds", 1)
    assert re.search(
        r"demo: by length, \w+, [\d.e+]+ captions/s; .* ratio [\d.]+; published fp32 .* ratio [\d.]+", said
    )


def test_readers_read_every_format(bench):
    said = bench("readers", "--samples", 10, "--size", "64x48", "--rounds", 1)
    assert re.findall(r"^(.+): [\d,]+ samples/s", said, re.MULTILINE) == [
        "tar",
        "tar.gz",
        "folder",
        "Parquet",
        "listing (CSV)",
    ]
    assert "of unpacking" in said


def test_a_reader_that_loses_a_picture_gives_no_rate(bench, monkeypatch):
    write = inputs.write_tar
    monkeypatch.setattr("benchmarks.readers.write_tar", lambda path, pairs: write(path, list(pairs)[1:]))
    with pytest.raises(RuntimeError, match="9 of 10 pictures"):
        bench("readers", "--samples", 10, "--size", "64x48", "--rounds", 1)


def test_end_to_end(bench, in_process):
    flags = ("--model", "demo", "--sizes", "64x64", "--shards", 2, "--rounds", 1)
    assert re.search(r"64x64: [\d.e+]+ pairs/s, 20 with start-up; too few", bench("embed", *flags, "--pairs", 20))
    run = commands.Run(
        10.0,
        {
            "samples": 100,
            "samples_per_second": 20,
            "ceiling": 25,
            "fraction_of_ceiling": 0.8,
            "bound": 0.9,
            "bottleneck": "the model",
        },
    )
    assert embed.report([run]) == (
        "20 pairs/s, 10 with start-up; of the ceiling (25) 0.800, with start-up 0.400; bound 0.900, "
        "of the bound 0.889; bottleneck the model"
    )


def test_a_command_that_fails_gives_no_figure():
    with pytest.raises(RuntimeError, match="ended with 3"):
        commands.seconds_of([sys.executable, "-c", "raise SystemExit(3)"])


def test_without_clip_retrieval_and_torchvision_the_benchmark_says_how_to_install_them(bench):
    said = bench("peer", "--pairs", 8)
    assert said.startswith(f"--python is {sys.executable}, which cannot import clip-retrieval and torchvision (")
    assert "pip install clip-retrieval==2.45.0" in said and "\n" not in said.strip()


def test_both_programs_must_hold_the_same_pairs(tmp_path):
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    for folder in (ours / "embeddings", theirs / "metadata", theirs / "img_emb", theirs / "text_emb"):
        folder.mkdir(parents=True)
    rows = {"caption": ["a", "b"], "image_embedding": [[1.0, 0], [0, 1.0]], "caption_embedding": [[1.0, 0], [1.0, 0]]}
    pq.write_table(pa.table(rows), ours / "embeddings" / "0.parquet")
    pq.write_table(pa.table({"caption": ["b", "a"]}), theirs / "metadata" / "metadata_0.parquet")
    np.save(theirs / "img_emb" / "img_emb_0.npy", np.array([[0, 1], [1, 0]], np.float16))
    np.save(theirs / "text_emb" / "text_emb_0.npy", np.array([[1, 0], [0.6, 0.8]], np.float16))
    assert re.fullmatch(r"image 1\.00000, caption 0\.60\d+", peer._compare(ours, theirs, 2))
    pq.write_table(pa.table({"caption": ["b"]}), theirs / "metadata" / "metadata_0.parquet")
    with pytest.raises(RuntimeError, match="of 2 pairs our output holds 2 and clip-retrieval's holds 1"):
        peer._compare(ours, theirs, 2)


@pytest.mark.slow  # seven seconds
def test_near_duplicates(bench, monkeypatch):
    """In parts of 500 rows there is one block, so every planted pair must be found, and no other."""
    from benchmarks import deduplicate

    for name, value in {"PART_ROWS": 500, "D": 64, "TILE": 64, "TILES": 2}.items():
        monkeypatch.setattr(deduplicate, name, value)
    lines = bench("deduplicate", "--rows", 2000).splitlines()
    pattern = r"recall 1\.00000 of \d+ pairs, precision 1\.00000, [\d.]+ CPU s, ratio to the product [\d.]+"
    assert [line.split(":")[0] for line in lines[1:]] == ["clusters", "alike"]
    assert all(re.search(pattern, line) for line in lines[1:]), lines


def test_search_and_indexes(bench, monkeypatch):
    from benchmarks import search

    for name, value in {"PART_ROWS": 500, "D": 16, "CLUSTERS": 20, "_peak": lambda *_: 1.0}.items():
        monkeypatch.setattr(search, name, value)
    said = bench("search", "--rows", 1000, "--queries", 20, "--rounds", 1)
    assert re.search(r"1,000 rows of d = 16: one query .* ratio to the bare read [\d.]+; 20 queries", said), said
    said = bench("search", "--rows", 1000, "--index")
    assert len(re.findall(r"recall@10 [01]\.\d+, [\d.]+ ms a query, ratio to flat [\d.]+", said)) == 4, said


@pytest.mark.slow  # six seconds: it starts the command five times
def test_browsing(bench, monkeypatch, tmp_path, tiny_checkpoint):
    from benchmarks import browse
    from clip_transforms import ClipSpec, embed_shards

    for name, value in {"PART_ROWS": 50, "D": 16, "CLUSTERS": 20, "ASKED": 2}.items():
        monkeypatch.setattr(browse, name, value)
    said = bench("browse", "--rows", 100, "--index")
    assert len(re.findall(r"100 rows(?:, index)?: [\w ,]+ [\d.]+ ms, at most [\d.]+ ms", said)) == 14, said
    assert len(re.findall(r"ready after [\d.]+ s the first time, [\d.]+ s then", said)) == 2, said
    embed_shards(make_folder(tmp_path / "photos", 4), tmp_path / "out", ClipSpec(tiny_checkpoint, precision="fp32"))
    said = bench("browse", "--soak", 0.03, "--input", tmp_path / "out")
    assert re.search(r"0\.0 min: [\d,]+ MB of its own.*MB of its own at the end", said, re.DOTALL), said


def test_evaluation(bench, monkeypatch):
    from benchmarks import evaluate
    from clip_transforms import evaluate_embeddings

    sizes = {"IMAGES": 40, "CAPTIONS": 2, "D": 16, "SAMPLES": 200, "CLASSES": 3, "ROWS_A_PART": 50}
    for name, value in sizes.items():
        monkeypatch.setattr(evaluate, name, value)
    monkeypatch.setattr(evaluate, "_run", lambda *places, **asked: (1.0, 2.0, evaluate_embeddings(*places, **asked)))
    first, second = bench("evaluate").splitlines()
    assert re.search(r"retrieval, 40 images with 2 captions each: 1.0 s, [\d.]+ of .*, peak 2 MB", first), first
    assert re.search(r"probe, 200 × 16, 3 classes: 1 s, [\d.]+ of one fit, peak 2 MB, C ", second), second


@pytest.mark.slow  # each starts the command several times, and each start takes seconds
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "name, flags, pattern",
    [
        ("embed", "--model demo --sizes 64x64 --pairs 8 --shards 1 --rounds 1", r"64x64: [\d.e+]+ pairs/s"),
        (
            "small_shards",
            "--model demo --shards 1 --tiny_shards 3 --rounds 1",
            r"ratio [\d.]+, of whole[^$]*a unit costs",
        ),
        ("start_up", "--model demo --units 3 --rounds 1", r"first embedded batch of 32 after [\d.]+ s[^$]*a run over"),
        ("memory", "--samples 8", r"(?s)one tar: .* ratio [\d.]+.*one Parquet.* ratio .*folder: .* ratio"),
        ("memory", "--huge 3", r"one row group of \d+ MB, \d+ samples: [\d,]+ MB at the peak, -?\d+ MB over"),
        (
            "feed",
            "--model demo --samples 40 --sizes 64x64 --formats tar folder --models sleeping --processes 1 --rounds 1",
            r"64x64, tar, 1 × sleeping: [\d,]+ samples/s, bare decoding [\d,]+, ratio [^$]*64x64, folder",
        ),
        ("forward", "--model RN50 --rounds 1", r"RN50, \d+ captions at a time"),
    ],
    ids=["embed", "small_shards", "start_up", "memory", "memory of a huge row group", "feed", "forward"],
)
def test_benchmarks_of_whole_commands(name, flags, pattern):
    argv = [sys.executable, "-m", f"benchmarks.{name}", *flags.split()]
    done = subprocess.run(argv, capture_output=True, text=True, cwd=ROOT, timeout=500)
    assert done.returncode == 0 and re.search(pattern, done.stdout), (done.stdout, done.stderr)
