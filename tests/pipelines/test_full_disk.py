"""A file that cannot be written whole: the command ends with one sentence that names it.

A limit on the size of files stands for a full disk: the system refuses the same call, and nobody need be root.
"""

import contextlib
import importlib
import resource

import numpy as np
import pytest
from conftest import make_tar

from benchmarks.datasets import write_rows
from pipelines import label

pytestmark = pytest.mark.usefixtures("without_beam")

ROWS = 3_000
GO_ON = "; what is committed stays; the same command goes on from there"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    rng = np.random.default_rng(0)
    rows = {"caption": [str(rng.integers(1 << 60)) for _ in range(ROWS)], "clip_score": rng.random(ROWS, np.float32)}
    rows |= {f"{name}_embedding": rng.normal(size=(ROWS, 8)) for name in ("image", "caption")}
    rows |= {"image_sha256": [f"{rng.integers(1 << 20) % 200:064x}" for _ in range(ROWS)], "d": 8}
    rows |= {"metadata": [f'{{"uid": "{rng.integers(1 << 60):032x}"}}' for _ in range(ROWS)]}
    return write_rows(tmp_path_factory.mktemp("made") / "out", [rows])


@contextlib.contextmanager
def files_of_at_most(size):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def assert_named(said, folder, name):
    (line,) = [line for line in said.splitlines() if line.startswith("the run failed: ")]
    begin, end = f"the run failed: [Errno 27] File too large: '{folder}/", f"'{GO_ON}"
    assert line.startswith(begin) and line.endswith(end) and name in line[len(begin) - 1 : -len(end)], line


@pytest.mark.parametrize(
    "verb, flags, name",
    [
        ("filter", ["--where", "clip_score > 0.1"], "/e/parts/part-00000.parquet"),
        ("deduplicate", [], "/e/_work/rows/0"),
        ("search", ["--like", "000001", "--top_k", "1000"], "/found.npy"),
        ("evaluate", ["--measure", "retrieval"], "/e/_work/pairs/0"),
        ("index", [], "/rows.parquet."),
        ("report", ["--no_pictures"], "looked/part-00000.parquet"),
        ("export", ["--as", "clip_retrieval"], "/img_emb_0.npy."),
        ("export", ["--as", "npy"], "/image_embeddings.npy."),
        ("export", ["--as", "datacomp_uids"], "/part-00000.npy."),
        ("export", ["--as", "faiss"], "/image.index."),
        ("export", ["--as", "lance"], "/embeddings.lance"),
        ("export", ["--as", "webdataset"], ".tar"),
    ],
    ids=lambda value: " ".join(value[1:2]) if isinstance(value, list) else value.split("/")[-1],
)
def test_the_file_is_named_and_the_same_command_goes_on(verb, flags, name, dataset, tmp_path, capfd):
    main = importlib.import_module(f"pipelines.{verb}").main
    argv = ["--input", str(dataset), "--output", str(tmp_path / ("e.html" if verb == "report" else "e")), *flags]
    with files_of_at_most(2_000):
        assert main(argv) == 1
    assert_named(capfd.readouterr().err, tmp_path, name)
    assert not list(tmp_path.glob("e/_temporary/*")) and not (tmp_path / "e" / "_SUCCESS").exists()
    assert main(argv) == 0


def test_a_part_of_labels_and_of_embeddings_is_named(embed, tmp_path, taxonomy_file, capfd):
    tar = make_tar(tmp_path / "a.tar", 40)
    with files_of_at_most(6_000):
        embed(tar, output=tmp_path / "out", code=1)
    assert_named(capfd.readouterr().err, tmp_path / "out", "/embeddings.parquet")
    embed(tar, output=tmp_path / "out")
    argv = ["--input", str(tmp_path / "out"), "--taxonomy", taxonomy_file]
    capfd.readouterr()
    with files_of_at_most(1_500):
        assert label.main(argv) == 1
    assert_named(capfd.readouterr().err, tmp_path / "out", "parquet")
    assert label.main(argv) == 0
