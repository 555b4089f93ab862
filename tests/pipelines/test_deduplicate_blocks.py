"""deduplicate over several blocks: the same rows and bytes on every runner, and after every kill."""

import functools
import json
import sys

import apache_beam as beam
import numpy as np
import pytest
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from conftest import command
from near_rows import components, groups_of, make_dataset, name_of, near, small_dataset, stored, written  # noqa: F401
from test_runners import TWO_PROCESSES, kill_when

from clip_transforms import DeduplicateEmbeddings, deduplicate_embeddings
from clip_transforms.run import deduplicate_steps, near_steps
from clip_transforms.select import block_rows, blocks
from pipelines import deduplicate

# Commands in this process; those in a process of their own, and the transforms, take Beam.
pytestmark = pytest.mark.usefixtures("without_beam")


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """More rows than one block."""
    folder = tmp_path_factory.mktemp("large") / "out"
    make_dataset(folder, [3400] * 6)
    return folder


WAYS = {
    "exact": {},
    "image": {"by": "image", "measure_recall": 500},
    "semdedup": {"by": "caption", "rule": "semdedup"},
}


@pytest.fixture(scope="module")
def reference(large, tmp_path_factory):
    """The folder of a way, made by the plain function when it is first asked for."""

    @functools.cache
    def made(way):
        folder = tmp_path_factory.mktemp("reference") / "kept"
        deduplicate_embeddings(large, folder, **WAYS[way])
        return folder

    return made


def test_many_blocks_find_the_pairs_that_all_pairs_are_and_no_others(large, reference):
    rows = stored(large)
    pairs = list(near(rows, ["image_embedding"], 0.95))
    found, _ = groups_of(reference("image"))
    place = {name_of(row): i for i, row in enumerate(rows)}
    group_of = {place[name]: number for number, group in enumerate(found) for name in group}
    right = [group_of.get(i, -1) == group_of.get(j, -2) for i, j in pairs]
    assert len(right) > 2000 and np.mean(right) >= 0.998
    whole = [set(group) for group in components(pairs)]
    component = {i: number for number, group in enumerate(whole) for i in group}
    for group in found:
        assert len({component[place[name]] for name in group}) == 1, "rows that no chain of near ones joins"
    record = json.loads((reference("image") / "selection.json").read_text())["duplicates"]
    assert record["blocks"] > 80 and record["recall"] >= 0.998
    assert record["measured"]["pairs"] > 50
    assert 0.99 * record["measured"]["pairs"] <= record["measured"]["found"] <= record["measured"]["pairs"]


@pytest.mark.parametrize(
    "way",
    ["image", *(pytest.param(way, marks=pytest.mark.slow) for way in ("exact", "semdedup"))],  # seconds each
)
def test_beam_in_this_process_gives_the_same_bytes(way, large, reference, tmp_path):
    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        parts = pipeline | DeduplicateEmbeddings(large, tmp_path / way, **WAYS[way])
        _ = parts | beam.Map(lambda part: part[0]) | beam.io.WriteToText(str(tmp_path / f"{way}.txt"))
    assert written(tmp_path / way) == written(reference(way))
    lines = [line for path in tmp_path.glob(f"{way}.txt*") for line in path.read_text().splitlines()]
    assert sorted(lines) == sorted(str(path) for path in (tmp_path / way / "parts").iterdir())


def arguments(dataset, output, way, *flags):
    given = [part for name, value in WAYS[way].items() for part in (f"--{name}", value)]
    return [str(part) for part in ("--input", dataset, "--output", output, *given, *flags)]


@pytest.mark.slow  # two workers of Beam, which import everything anew; the portable runner below has workers too
@pytest.mark.timeout(200)
def test_two_processes_give_the_same_bytes(large, reference, tmp_path):
    done = command("pipelines.deduplicate", *arguments(large, tmp_path / "kept", "image", *TWO_PROCESSES))
    assert done.returncode == 0, done.stderr
    assert written(tmp_path / "kept") == written(reference("image"))


@pytest.mark.timeout(200)
@pytest.mark.parametrize("way", ["image", pytest.param("exact", marks=pytest.mark.slow)])  # some seconds more
def test_the_portable_runner_with_workers_gives_the_same_bytes(way, large, reference, service, tmp_path):
    done = command("pipelines.deduplicate", *arguments(large, tmp_path / "kept", way, *service))
    assert done.returncode == 0, done.stderr
    assert written(tmp_path / "kept") == written(reference(way))


@pytest.mark.slow  # each way again over 20,000 rows: seven seconds
def test_neither_the_runs_of_parts_nor_pieces_of_blocks_change_the_rows(large, reference, tmp_path, monkeypatch):
    monkeypatch.setattr(deduplicate_steps, "RUN_ROWS", 4000)
    monkeypatch.setattr(block_rows, "PIECE_ROWS", 500)
    for way, settings in WAYS.items():
        deduplicate_embeddings(large, tmp_path / way, **settings)
        assert written(tmp_path / way) == written(reference(way))


class Killed(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("at", [1, 2, 3, 5, 6, 7, 8, 9, 10, 11, 12, 14, 17])
def test_whatever_file_it_was_killed_at_the_next_run_ends_with_the_same_bytes(way, at, small, tmp_path, monkeypatch):
    from clip_transforms.storage import writing

    monkeypatch.setattr(deduplicate_steps, "RUN_ROWS", 150)
    monkeypatch.setattr(blocks, "ONE_BLOCK_ROWS", 200)
    real, committed = writing._move, []

    def move(local, uri):
        committed.append(uri)
        if len(committed) >= at:
            raise Killed
        return real(local, uri)

    with monkeypatch.context() as patch:
        patch.setattr(writing, "_move", move)
        try:
            deduplicate_embeddings(small, tmp_path / "killed", **WAYS[way])
        except Killed:
            assert not (tmp_path / "killed" / "_SUCCESS").exists()
    deduplicate_embeddings(small, tmp_path / "killed", **WAYS[way])
    deduplicate_embeddings(small, tmp_path / "undisturbed", **WAYS[way])
    assert written(tmp_path / "killed") == written(tmp_path / "undisturbed")


@pytest.mark.parametrize("way", ["exact", "image"])
@pytest.mark.parametrize("at", ["_SUCCESS", "_work"])
def test_killed_at_its_end_it_has_nothing_to_find_again(way, at, small, tmp_path, monkeypatch):
    """The work was removed before `_SUCCESS` was there, so that everything began anew."""
    from clip_transforms import storage

    commit, remove = storage.writing.commit_file, storage.remove

    def killed_at(uri, go_on):
        if uri.endswith(f"/{at}"):
            raise Killed
        go_on()

    def removed(uri):
        if uri.endswith(f"/{at}") and (tmp_path / "killed" / "_SUCCESS").exists():
            remove(sorted((tmp_path / "killed" / "_work").iterdir())[0].as_posix())
            raise Killed
        remove(uri)

    monkeypatch.setattr(blocks, "ONE_BLOCK_ROWS", 200)
    deduplicate_embeddings(small, tmp_path / "undisturbed", **WAYS[way])
    with monkeypatch.context() as patch:
        patch.setattr(storage.writing, "commit_file", lambda local, uri: killed_at(uri, lambda: commit(local, uri)))
        patch.setattr(storage, "remove", removed)
        with pytest.raises(Killed):
            deduplicate_embeddings(small, tmp_path / "killed", **WAYS[way])
    for module, name in ((near_steps, "compare"), (near_steps, "make_blocks"), (deduplicate_steps, "same_hash")):
        monkeypatch.setattr(module, name, None)  # whoever calls it now begins anew
    deduplicate_embeddings(small, tmp_path / "killed", **WAYS[way])
    assert written(tmp_path / "killed") == written(tmp_path / "undisturbed")


@pytest.mark.slow  # a run in a process of its own and one that goes on, over 20,000 rows: ten seconds
def test_a_process_that_is_killed_goes_on_where_it_was(large, reference, slow_commits, tmp_path):
    argv = arguments(large, tmp_path / "slow", "image")
    kill_when(lambda: list(tmp_path.glob("slow/_work/pairs/*")), "pipelines.deduplicate", argv, slow_commits)
    centroids = (tmp_path / "slow" / "_work" / "centroids").read_bytes()
    assert deduplicate.main(argv) == 0
    assert centroids and written(tmp_path / "slow") == written(reference("image"))


def test_without_faiss_many_rows_are_refused_and_equal_files_are_not(large, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ValueError, match=r"needs? faiss.*clip-transforms\[search\]"):
        deduplicate_embeddings(large, tmp_path / "kept", by="image")
    assert not (tmp_path / "kept").exists()
    assert deduplicate_embeddings(large, tmp_path / "exact")["counts"]["seen"] == 20_400
