"""--dry_run of the commands over a dataset: all checks, a few lines, and no file."""

import importlib
from pathlib import Path

import numpy as np
import pytest
from conftest import files_of

from benchmarks.datasets import write_rows

# Commands in this process; those in a process of their own, and the transforms, take Beam.
pytestmark = pytest.mark.usefixtures("without_beam")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    rows = {"caption": ["a", "b"], "clip_score": [0.1, 0.2], "image_embedding": np.eye(2, 4)}
    labels = {"animals": [{"label": ["cat", "dog"]}]}
    return write_rows(tmp_path_factory.mktemp("made") / "out", [rows], labels)


@pytest.mark.parametrize(
    "verb, flags, said",
    [
        ("deduplicate", ["--by", "image"], ["  by                'image'", "  threshold         0.95"]),
        ("export", ["--as", "npy"], ["  as                'npy'", "  modality          ['image']"]),
        ("search", ["--like", "000001"], ["  top_k "]),
        ("evaluate", ["--measure", "probe", "--truth_column", "caption"], ["evaluate over 1 part"]),
        ("report", ["--no_pictures"], []),
    ],
)
def test_a_dry_run_checks_everything_and_writes_nothing(verb, flags, said, dataset, tmp_path, capsys):
    main = importlib.import_module(f"pipelines.{verb}").main
    before = files_of(Path(dataset))
    argv = ["--input", dataset, "--output", str(tmp_path / "new.html"), *flags]
    assert main([*argv, "--dry_run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{verb} over 1 part of {dataset}, 2 rows"
    assert lines[-1].startswith(f"output {tmp_path}/new.html") and lines[-1].endswith(
        "; nothing was written (--dry_run)"
    )
    assert all(any(line.startswith(start) for line in lines) for start in said), lines
    assert files_of(Path(dataset)) == before and not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="is not a dataset of this program"):
        main(["--input", str(tmp_path), *argv[2:], "--dry_run"])


def test_a_search_that_is_only_printed_has_no_dry_run(dataset):
    search = importlib.import_module("pipelines.search")
    with pytest.raises(ValueError, match="--dry_run does nothing without --output"):
        search.main(["--input", dataset, "--like", "000001", "--dry_run"])
