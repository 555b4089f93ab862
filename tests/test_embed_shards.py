"""embed_shards and label_embeddings, the plain functions: the same checks, commits and bytes as through a runner."""

import json
import os
import signal
import subprocess
import sys
import time

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from conftest import ROOT, files_of, make_folder, make_parquet, make_tar, pair, picture, write_tar

from clip_transforms import ClipSpec, EmbedShards, LabelEmbeddings, Taxonomy, embed_shards, label_embeddings

ANIMALS = Taxonomy.from_json("animals", {"classes": ["cat", "dog"]})
COLORS = Taxonomy.from_json("colors", {"classes": ["red", "green", "blue"]})


@pytest.fixture
def spec(tiny_checkpoint):
    return ClipSpec(tiny_checkpoint, precision="fp32")


@pytest.fixture
def inputs(tmp_path):
    """A tar, one with rejects, a Parquet file of several units' worth, a folder."""
    broken = [*pair("a", 1), ("b.jpg", picture(2)[:300]), ("b.txt", b"\xff\xfe"), *pair("c", 3)]
    return [
        make_tar(tmp_path / "a.tar", 6),
        write_tar(tmp_path / "b.tar", broken),
        make_parquet(tmp_path / "c.parquet", 7, first=20),
        make_folder(tmp_path / "d", 4, first=40),
    ]


def with_beam(transform):
    with beam.Pipeline(runner="FnApiRunner", options=PipelineOptions([])) as pipeline:
        _ = pipeline | transform


def test_it_gives_the_bytes_of_the_transform(inputs, spec, tmp_path):
    plain, beams = tmp_path / "plain", tmp_path / "beam"
    settings = {"max_reject_fraction": 0.5, "batch_size": 4}
    result = embed_shards(inputs, str(plain), spec, [ANIMALS], **settings)
    with_beam(EmbedShards(inputs, str(beams), spec, [ANIMALS], **settings))
    assert files_of(plain) == files_of(beams) and len(files_of(plain)) == 12
    assert json.loads((plain / "run.json").read_text()) == result
    other = json.loads((beams / "run.json").read_text())
    for name in ("units", "input", "dataset", "problems", "complete", "fingerprint", "parts_by_device", "taxonomies"):
        assert result[name] == other[name], name
    assert result["units"] == {"input": 4, "committed": 4, "skipped": 0, "labelled": 0} and result["complete"]
    assert (plain / "_SUCCESS").exists() and not (plain / "_temporary").exists()


def test_labels_too(inputs, spec, tmp_path):
    plain, beams = tmp_path / "plain", tmp_path / "beam"
    for out in (plain, beams):
        embed_shards(inputs, str(out), spec, max_reject_fraction=0.5)
    result = label_embeddings(str(plain), [COLORS, ANIMALS], top_labels=2)
    with_beam(LabelEmbeddings(str(beams), [COLORS, ANIMALS], top_labels=2))
    assert files_of(plain) == files_of(beams) and len(files_of(plain)) == 16
    assert result["labelled"] == {"parts": 4, "rows": 19} and result["taxonomies"].keys() == {"colors", "animals"}
    (ours,) = [path for path in (plain / "runs").iterdir() if path.stem == result["run"]]
    assert json.loads(ours.read_text()) == result and (plain / "_SUCCESS").exists()
    assert label_embeddings(str(plain), [COLORS, ANIMALS], top_labels=2)["labelled"] == {"parts": 0, "rows": 0}


def test_a_second_call_does_nothing_and_says_so(inputs, spec, tmp_path):
    out = tmp_path / "out"
    first = embed_shards(inputs, str(out), spec, max_reject_fraction=0.5)
    before = files_of(out)
    second = embed_shards(inputs, str(out), spec, max_reject_fraction=0.5)
    assert second["units"] == {"input": 4, "committed": 0, "skipped": 4, "labelled": 0}
    assert second["input"] == first["input"] and files_of(out) == before


def test_what_is_not_complete_is_said_in_the_result(inputs, spec, tmp_path):
    result = embed_shards(inputs, str(tmp_path / "out"), spec, max_reject_fraction=0.01)
    assert not result["complete"] and "more than --max_reject_fraction 0.01" in result["problems"][0]
    assert not (tmp_path / "out" / "_SUCCESS").exists()


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"top_labels": 0}, "--top_labels is 0, but it must be 1 or more"),
        ({"processes": -1}, "--processes is -1, but it must be"),
        ({"units": "4/4"}, "--units is '4/4', but it must be i/n"),
    ],
    ids=["top labels", "processes", "units"],
)
def test_a_wrong_setting_is_one_sentence_before_anything_is_written(settings, said, inputs, spec, tmp_path):
    with pytest.raises(ValueError, match=said):
        embed_shards(inputs, str(tmp_path / "out"), spec, **settings)
    assert not (tmp_path / "out").exists()


def test_two_processes_give_the_same_bytes(inputs, spec, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    embed_shards(inputs, str(one), spec, [ANIMALS], max_reject_fraction=0.5, batch_size=8)
    result = embed_shards(inputs, str(two), spec, [ANIMALS], max_reject_fraction=0.5, batch_size=8, processes=2)
    # Torch sums in another order on other numbers of threads, so the last bits may differ (docs/fidelity.md).
    assert files_of(one).keys() == files_of(two).keys() and result["complete"]


def test_what_ends_it_comes_out_as_it_is_and_the_next_call_goes_on(inputs, spec, tmp_path, monkeypatch):
    from clip_transforms.parts import writer

    commit, committed = writer.UnitWriter.commit, []

    def full(self, *args):
        if len(committed) == 2:
            raise OSError(28, "No space left on device", "x")
        committed.append(self)
        return commit(self, *args)

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(writer.UnitWriter, "commit", full)
        with pytest.raises(OSError, match="No space left"):
            embed_shards(inputs, str(out), spec, max_reject_fraction=0.5)
    assert len(list((out / "embeddings").glob("*.parquet"))) == 2 and not (out / "_temporary").exists()
    result = embed_shards(inputs, str(out), spec, max_reject_fraction=0.5)
    assert result["units"]["skipped"] == 2 and result["complete"]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=["Ctrl-C", "KILL"])
def test_a_killed_call_goes_on_to_the_same_bytes(number, tiny_checkpoint, tmp_path, slow_commits, spec):
    tars = [make_tar(tmp_path / f"{i}.tar", 3, first=3 * i) for i in range(6)]
    slow = tmp_path / "slow"
    code = (  # Ctrl-C is ignored where the suite itself runs in the background
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from clip_transforms import ClipSpec, embed_shards\n"
        f"embed_shards({tars!r}, {str(slow)!r}, ClipSpec({tiny_checkpoint!r}, precision='fp32'), batch_size=4)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=slow_commits, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 40
    while not list(slow.glob("embeddings/*.parquet")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(process.pid, number)
    process.communicate(timeout=20)
    assert 0 < len(list(slow.glob("embeddings/*.parquet"))) < 6
    result = embed_shards(tars, str(slow), spec, batch_size=4)
    embed_shards(tars, str(tmp_path / "calm"), spec, batch_size=4)
    assert result["units"]["skipped"] > 0 and files_of(slow) == files_of(tmp_path / "calm")
    assert not (slow / "_temporary").exists()
