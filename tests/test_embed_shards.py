"""embed_shards and label_embeddings, the plain functions: the same checks, commits and bytes as through a runner."""

import concurrent.futures
import dataclasses
import importlib
import inspect
import json
import logging
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import apache_beam as beam
import numpy as np
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from conftest import ROOT, files_of, make_folder, make_parquet, make_tar, pair, picture, write_tar
from forked import Process

import clip_transforms
from clip_transforms import (
    ClipSpec,
    Dataset,
    EmbedShards,
    LabelEmbeddings,
    ReadEmbeddings,
    ReaderOptions,
    Taxonomy,
    embed_shards,
    label_embeddings,
    read_embeddings,
)
from clip_transforms.run.beam import Shared
from clip_transforms.run.begin import begin_run
from clip_transforms.run.embed_units import embed_run_classes
from clip_transforms.run.end import write_run
from clip_transforms.run.plan import plan_run
from clip_transforms.run.settings import Settings
from clip_transforms.run.summary import RunSummary

ANIMALS = Taxonomy.from_json("animals", {"classes": ["cat", "dog"]})
COLORS = Taxonomy.from_json("colors", {"classes": ["red", "green", "blue"]})


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


@pytest.mark.slow  # the command with two processes is tested by default; two more imports of torch: ten seconds
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
    code = (
        "from clip_transforms import ClipSpec, embed_shards\n"
        f"embed_shards({tars!r}, {str(slow)!r}, ClipSpec({tiny_checkpoint!r}, precision='fp32'), batch_size=4)"
    )
    process = Process("-c", code, cwd=ROOT, env=slow_commits, stderr=subprocess.PIPE)
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


# Types


@pytest.mark.parametrize("as_", [str, Path, lambda folder: [Path(folder)], lambda folder: iter([str(folder)])])
def test_inputs_are_one_text_or_path_or_several(as_, spec, tmp_path):
    make_folder(tmp_path / "photos", 3)
    result = embed_shards(as_(tmp_path / "photos"), tmp_path / "out", spec)
    assert result["input"]["image.embedded"] == 3 and result["complete"]
    assert Dataset.open(tmp_path / "out").to_table("key").to_pydict() == {"key": [f"{i:06d}.jpg" for i in range(3)]}


def test_models_and_taxonomies_are_named_by_text_or_path(tiny_checkpoint, spec, tmp_path):
    tar = make_tar(tmp_path / "a.tar", 4)
    for name, taxonomy in (("animals", ANIMALS), ("colors", COLORS)):
        (tmp_path / f"{name}.txt").write_text("\n".join(taxonomy.class_names))
    plain, named = tmp_path / "plain", tmp_path / "named"
    usual = ClipSpec(tiny_checkpoint)
    embed_shards([tar], str(plain), usual, [ANIMALS])
    label_embeddings(str(plain), [COLORS, Taxonomy.load(tmp_path / "animals.txt")])
    embed_shards(Path(tar), named, Path(tiny_checkpoint), str(tmp_path / "animals.txt"))
    result = label_embeddings(named, [tmp_path / "colors.txt", ANIMALS], model=tiny_checkpoint)
    assert result["labelled"]["parts"] == 1 and files_of(plain) == files_of(named) and len(files_of(named)) == 4
    transform = EmbedShards(tar, tmp_path / "beam", tiny_checkpoint, (path for path in [tmp_path / "animals.txt"]))
    with_beam(transform)
    with_beam(LabelEmbeddings(tmp_path / "beam", COLORS, tiny_checkpoint))
    assert files_of(plain) == files_of(tmp_path / "beam")


def test_one_column_and_one_taxonomy_are_no_letters(spec, tmp_path):
    out = tmp_path / "out"
    embed_shards(make_tar(tmp_path / "a.tar", 2), out, spec, ANIMALS)
    (batch,) = read_embeddings(out, "key", "animals")
    assert batch.to_pydict() == {"key": ["000000", "000001"]}
    (batch,) = read_embeddings(out, ["key", "animals.label"], "animals")
    assert batch.schema.names == ["key", "animals.label"]
    seen = []
    with beam.Pipeline(runner="FnApiRunner", options=PipelineOptions([])) as pipeline:
        rows = pipeline | ReadEmbeddings(out, "key", "animals") | beam.FlatMap(lambda batch: batch.to_pylist())
        _ = (
            rows
            | beam.combiners.ToList()
            | beam.Map(lambda rows: (tmp_path / "rows.json").write_text(json.dumps(rows)))
        )
    seen = json.loads((tmp_path / "rows.json").read_text())
    assert sorted(row["key"] for row in seen) == ["000000", "000001"]


def test_columns_and_places_of_a_reader_are_texts(spec, tmp_path):
    tar = write_tar(tmp_path / "a.tar", pair("a", 1, json=b'{"width": 7, "licence": "CC0"}'))
    reader = ReaderOptions(columns=["wide=width:int32", "licence"])
    embed_shards(tar, tmp_path / "out", spec, reader=reader)
    assert Dataset.open(tmp_path / "out").to_table(["wide", "licence"]).to_pylist() == [{"wide": 7, "licence": "CC0"}]
    assert ReaderOptions(allow_uri="https://").allow_uri == ("https://",)
    assert ReaderOptions(exclude="*.bak").exclude == ("*.bak",)
    with pytest.raises(ValueError, match="--columns names one column twice"):
        ReaderOptions(columns=["licence", "Licence=other"])


def test_numbers_of_numpy_are_numbers(spec, tmp_path):
    tar, reader = make_tar(tmp_path / "a.tar", 3), ReaderOptions(limit=np.int64(2))
    numbers = {"top_labels": np.int64(2), "max_reject_fraction": np.float32(0.5), "batch_size": np.int16(2)}
    result = embed_shards(np.array([tar]), tmp_path / "out", spec, ANIMALS, reader=reader, **numbers)
    assert result["input"]["samples"] == 2 and result["complete"]


PLACE = "a text or a Path"
WRONG = {
    "inputs": [
        (3, f"inputs is an int (3), but it must be {PLACE}, or several"),
        (None, f"inputs is None, but it must be {PLACE}, or several"),
        (b"photos", f"inputs is a bytes (b'photos'), but it must be {PLACE}, or several"),
        ({"photos": 1}, f"inputs is a dict ({{'photos': 1}}), but it must be {PLACE}, or several"),
        (["a", 3], f"inputs[1] is an int (3), but it must be {PLACE}"),
        ([], "--input is empty; name at least one folder, tar, Parquet file or pattern"),
        ("", "inputs is an empty text, but it must name a file or a folder"),
        (
            Path("gs://web/photos"),
            "inputs is PosixPath('gs:/web/photos'), but a Path cannot hold a URI, since it makes one slash of two; "
            "give the text 'gs://web/photos'",
        ),
    ],
    "output": [
        (None, f"output is None, but it must be {PLACE}"),
        (["out"], f"output is a list (['out']), but it must be {PLACE}"),
        ("", "output is an empty text, but it must name a file or a folder"),
    ],
    "model": [
        (None, "model is None, but it must be a text, a Path or a ClipSpec"),
        (b"demo", "model is a bytes (b'demo'), but it must be a text, a Path or a ClipSpec"),
    ],
    "taxonomies": [
        (None, "taxonomies is None, but it must be a Taxonomy, a text or a Path, or several"),
        ([3], "taxonomies[0] is an int (3), but it must be a Taxonomy, a text or a Path"),
        (
            {"classes": 1},
            "taxonomies is a dict ({'classes': 1}), but it must be a Taxonomy, a text or a Path, or several",
        ),
    ],
    "reader": [
        (
            {"limit": 3},
            "reader is a dict ({'limit': 3}), but it must be a ReaderOptions, such as ReaderOptions(limit=100)",
        )
    ],
    "top_labels": [
        ("5", "top_labels is a str ('5'), but it must be a whole number"),
        (True, "top_labels is a bool (True), but it must be a whole number"),
    ],
    "max_reject_fraction": [("0.1", "max_reject_fraction is a str ('0.1'), but it must be a number")],
    "overwrite": [("yes", "overwrite is a str ('yes'), but it must be True or False")],
    "units": [(0, "units is an int (0), but it must be a text or None")],
}


@pytest.mark.parametrize("argument, value, said", [(name, *case) for name, cases in WRONG.items() for case in cases])
def test_a_wrong_type_is_one_sentence(argument, value, said, tmp_path):
    given = {"inputs": "photos", "output": tmp_path / "out", "model": "demo", argument: value}
    for verb in (embed_shards, EmbedShards):
        with pytest.raises(ValueError) as caught:
            verb(**given)
        assert str(caught.value) == said and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "call, said",
    [
        (lambda: label_embeddings(3, "t.txt"), f"dataset is an int (3), but it must be {PLACE}"),
        (
            lambda: LabelEmbeddings("out", None),
            "taxonomies is None, but it must be a Taxonomy, a text or a Path, or several",
        ),
        (
            lambda: LabelEmbeddings("out", [ANIMALS], 3),
            "model is an int (3), but it must be a text, a Path or a ClipSpec",
        ),
        (
            lambda: label_embeddings("out", ANIMALS, top_labels="5"),
            "top_labels is a str ('5'), but it must be a whole number",
        ),
        (lambda: read_embeddings(None), f"dataset is None, but it must be {PLACE}"),
        (lambda: ReadEmbeddings(["out"]), f"dataset is a list (['out']), but it must be {PLACE}"),
        (lambda: ReadEmbeddings("out", columns=3), "columns is an int (3), but it must be a text, or several"),
        (
            lambda: ReadEmbeddings("out", labels=[ANIMALS]),
            f"labels[0] is a Taxonomy ({ANIMALS!r:.60}…), but it must be a text",
        ),
        (lambda: Dataset.open(3), f"uri is an int (3), but it must be {PLACE}"),
        (lambda: Taxonomy.load(3), f"uri of the taxonomy is an int (3), but it must be {PLACE}"),
        (lambda: ClipSpec(3), "model is an int (3), but it must be a text, a Path or a ClipSpec"),
        (lambda: ClipSpec("demo", checkpoint_key=3), "checkpoint_key is an int (3), but it must be a text or None"),
        (lambda: ClipSpec("demo", device=None), "device is None, but it must be a text"),
        (lambda: ReaderOptions(limit="3"), "limit is a str ('3'), but it must be a whole number"),
        (
            lambda: ReaderOptions(columns=[3]),
            "columns[0] is an int (3), but it must be a text such as 'width_px=width:int32'",
        ),
    ],
)
def test_the_other_doors_say_it_in_the_same_words(call, said):
    with pytest.raises(TypeError) as caught:
        call()
    assert str(caught.value) == said and isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    "settings, model, said",
    [
        ({"processes": 100_000}, {}, "--processes is 100000, but it must be 1 to"),
        ({}, {"device": "cuda"}, "--device is cuda, but this machine shows no NVIDIA device"),
        ({}, {"model": "RN50"}, "RN50 cannot be downloaded"),
    ],
    ids=["processes", "device", "download"],
)
@pytest.mark.parametrize("run", [embed_shards, lambda *args, **more: with_beam(EmbedShards(*args, **more))])
def test_what_this_machine_cannot_do_is_refused_before_anything_is_written(
    settings, model, said, run, inputs, spec, tmp_path, monkeypatch
):
    monkeypatch.setattr("clip_transforms.workers.machine.has_nvidia", lambda: False)
    monkeypatch.setenv("CLIP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("clip_transforms.clip.architectures.URL_ROOT", "http://127.0.0.1:9")
    monkeypatch.setattr("clip_transforms.storage.retry.FIRST_WAIT", 0.001)
    with pytest.raises(ValueError, match=said):
        run(inputs, str(tmp_path / "out"), dataclasses.replace(spec, **model), **settings)
    assert not (tmp_path / "out").exists()


def test_what_was_found_is_logged(spec, tmp_path, caplog):
    tar, copy = make_tar(tmp_path / "a.tar", 2), tmp_path / "copy"
    copy.mkdir()
    shutil.copy(tar, copy)
    with caplog.at_level(logging.INFO):
        embed_shards([tar, str(copy)], str(tmp_path / "out"), spec)
    found = {record.levelname: record.getMessage() for record in caplog.records if record.name.endswith("embed_shards")}
    assert "1 webdataset shard" in found["INFO"] and "its rows will be in the dataset twice" in found["WARNING"]


@pytest.mark.parametrize(
    "verb, transform",
    [
        ("filter_embeddings", "FilterEmbeddings"),
        ("deduplicate_embeddings", "DeduplicateEmbeddings"),
        ("export_embeddings", "ExportEmbeddings"),
        ("evaluate_embeddings", "EvaluateEmbeddings"),
        ("report_embeddings", "ReportEmbeddings"),
        ("label_embeddings", "LabelEmbeddings"),
        ("index_embeddings", "IndexEmbeddings"),
        ("search_embeddings", "SearchEmbeddings"),
    ],
)
def test_a_function_and_its_transform_take_the_same_arguments_by_name(verb, transform, tmp_path):
    """`**conditions` gave no completion, and a wrong name showed a class of the inside."""
    function, transform = getattr(clip_transforms, verb), getattr(clip_transforms, transform)
    arguments = list(inspect.signature(function).parameters.values())
    assert arguments == list(inspect.signature(transform).parameters.values())
    named = [one for one in arguments if one.kind is one.KEYWORD_ONLY]
    assert {one.kind for one in arguments} == {arguments[0].POSITIONAL_OR_KEYWORD, named[0].KEYWORD_ONLY}
    documented = inspect.getdoc(function)
    assert all(f"\n    {one.name}: " in documented for one in arguments)
    places = [tmp_path] * (len(arguments) - len(named))
    for call in (function, transform):
        with pytest.raises(TypeError, match=rf"^{call.__qualname__}(\.__init__)?\(\) got an unexpected .* 'wher'"):
            call(*places, wher="true")


def test_an_argument_that_embed_has_not_is_named_with_the_nearest(tmp_path):
    for call in (embed_shards, EmbedShards):
        with pytest.raises(TypeError, match="have no argument procesess; did you mean processes"):
            call(tmp_path, tmp_path / "out", "demo", procesess=2)


def test_tasks_that_a_process_gets_at_once_take_turns(inputs, spec, tmp_path, monkeypatch):
    """As from Prism and Dataflow, whose threads would otherwise each bring a pool that decodes, and bytes that wait."""
    inputs = [*inputs, *(make_tar(tmp_path / f"{i}.tar", 2, first=60 + 2 * i) for i in range(4))]
    settings = {"max_reject_fraction": 0.5}
    embed_shards(inputs, str(tmp_path / "plain"), spec, [ANIMALS], **settings)
    module = importlib.import_module("clip_transforms.embed_shards")
    job, folder = begin_run(plan_run(Settings(inputs, str(tmp_path / "out"), spec, (ANIMALS,), **settings)), 1, ())
    classes, inside, at_once, embed_task = embed_run_classes(job), [], [], module.embed_task

    def watched(task, *others):
        inside.append(task)
        at_once.append(len(inside))
        yield from embed_task(task, *others)
        inside.remove(task)

    monkeypatch.setattr(module, "embed_task", watched)
    do_fn = module._EmbedTask(job, Shared())
    do_fn.setup()
    start = time.perf_counter()
    with folder, concurrent.futures.ThreadPoolExecutor(8) as threads:
        tasks = [(place, place + 1) for place in range(job.units)]
        results = [
            result for found in threads.map(lambda task: list(do_fn.process(task, classes)), tasks) for result in found
        ]
        elapsed = time.perf_counter() - start
        assert len(results) == len(tasks) == 8 and at_once == [1] * 8
        summary = RunSummary.of_all(results)
        write_run(job, summary)
    assert 0 < summary.seconds["task"] <= elapsed, "what a stopwatch says"
    assert files_of(tmp_path / "out") == files_of(tmp_path / "plain")
