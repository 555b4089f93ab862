"""`inspect`: one screen for whatever a path is, and one sentence for what nobody can use."""

import gzip
import json
import os
import pickle
import random
import shutil
import zipfile
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import ROOT, make_folder, make_parquet, make_tar, picture, published_model
from tfrecords import write_tfrecord

import clip_transforms as ct
from benchmarks.datasets import write_rows
from clip_transforms.run import inspect_inputs
from clip_transforms.run.inspect_path import inspect_path
from pipelines import inspect as command
from pipelines.command_line import UsageError


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A dataset without a model, and what each verb makes of it."""
    place = tmp_path_factory.mktemp("inspected")
    make_tar(place / "0.tar", 8)
    rows = {"caption": [f"number {i}" for i in range(8)], "clip_score": np.linspace(0, 1, 8).astype(np.float32)}
    rows |= {"image_embedding": np.eye(8), "caption_embedding": np.eye(8)}
    rows |= {"image_sha256": [f"{i % 4}" for i in range(8)], "width": [40] * 8, "height": [30] * 8}
    rows |= {"shard": str(place / "0.tar")}
    labels = {"animals": [{"label": ["cat", "dog"] * 4, "probability": np.full(8, 0.5, np.float32)}]}
    out = write_rows(place / "out", [rows], labels)
    ct.filter_embeddings(out, place / "kept", top_fraction=0.3)
    ct.deduplicate_embeddings(out, place / "unique")
    ct.index_embeddings(out, place / "index")
    ct.search_embeddings(out, place / "found", like="000001")
    ct.evaluate_embeddings(out, place / "evaluated", measure="retrieval")
    ct.export_embeddings(out, place / "vectors", "npy")
    ct.export_embeddings(out, place / "chosen", "webdataset")
    ct.report_embeddings(out, place / "report.html", pictures=False)
    return place


def facts(path):
    found = inspect_path(str(path))
    return found.what, dict(found.facts), found.further


def refusal(path):
    with pytest.raises(ValueError) as raised:
        inspect_path(str(path))
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_a_dataset_says_who_made_it_what_it_holds_and_whether_it_is_whole(place, tmp_path):
    what, found, further = facts(place / "out")
    assert what == "a dataset" and found["state"] == "complete" and found["labels"] == "animals"
    assert found["made by"] == "embed with none" and found["shards"] == str(place / "0.tar")
    assert [found[name] for name in ("rows", "images", "captions")] == ["8 in 1 part", "8 embedded", "8 embedded"]
    assert further[0] == f"python -m pipelines.browse --input {place}/out"
    shutil.copytree(place / "out", tmp_path / "out")
    (tmp_path / "out" / "_SUCCESS").unlink()
    assert facts(tmp_path / "out")[1]["state"] == "not complete: a run was killed, or is at work"
    run = {
        "run": "1",
        "command": ["python", "-m", "pipelines.embed", "--input", "a b"],
        "problems": ["too many rejects"],
    }
    (tmp_path / "out" / "run.json").write_text(json.dumps(run))
    _, found, further = facts(tmp_path / "out")
    assert found["state"] == "not complete: too many rejects"
    assert further == ("python -m pipelines.embed --input 'a b'",)
    (tmp_path / "out" / "embeddings" / "part-00000.parquet").write_bytes(b"PAR1")
    assert facts(tmp_path / "out")[1]["state"].startswith("1 part cannot be read")


@pytest.mark.parametrize(
    "name, what, key, value, further",
    [
        ("kept", "a selection", "rows", "3 kept of 8", "export --input {out} --selection {it} --output"),
        (
            "unique",
            "a selection without duplicates",
            "rows",
            "4 kept of 8",
            "report --input {out} --selection {it}",
        ),
        ("index", "an index for searches", "rows", "8 (flat)", "search --input {out} --index {it} --text"),
        ("found", "the results of a search", "rows", "8 found for 1 query", None),
        ("evaluated", "an evaluation", "found", "retrieval", None),
        ("vectors", "an export", "made by", "export: as npy, modality image caption", None),
        ("chosen", "an export", "rows", "0 exported, 8 left out", "embed --input '{it}/shards/*.tar' --output"),
    ],
)
def test_what_a_verb_made_says_so_and_names_the_command_to_use(place, name, what, key, value, further):
    found = facts(place / name)
    assert (found[0], found[1]["state"], found[1]["dataset"]) == (what, "complete", f"{place}/out")
    assert found[1][key] == value
    assert found[1]["made by"].startswith({"kept": "filter: by clip_score, top_fraction 0.3"}.get(name, ""))
    if further:
        assert found[2][0].startswith(f"python -m pipelines.{further.format(out=place / 'out', it=place / name)}")
    elif name == "found":
        assert found[2] == (f"duckdb -c \"FROM '{place}/found/results.parquet'\"",)
        assert len(duckdb.sql(found[2][0].split('"')[1]).fetchall()) == 8
    elif name == "evaluated":
        assert found[2] == (f"its numbers are in {place}/evaluated/metrics.json",)


def test_an_output_that_is_not_whole_or_of_a_changed_dataset_says_so(place, tmp_path):
    for name in ("out", "kept"):
        shutil.copytree(place / name, tmp_path / name)
    made = json.loads((tmp_path / "kept" / "_command.json").read_text())
    (tmp_path / "kept" / "_command.json").write_text(json.dumps(made | {"dataset": str(tmp_path / "out")}))
    write_rows(tmp_path / "out", [{"caption": ["other"], "caption_embedding": np.eye(1, 8)}])
    assert facts(tmp_path / "kept")[1]["dataset"] == f"{tmp_path}/out (changed since: make this again)"
    shutil.rmtree(tmp_path / "out")
    assert facts(tmp_path / "kept")[1]["dataset"] == f"{tmp_path}/out (not there any more)"
    (tmp_path / "kept" / "_SUCCESS").unlink()
    _, found, further = facts(tmp_path / "kept")
    assert found["state"].startswith("not complete") and further == () and "rows" not in found
    (tmp_path / "kept" / "_command.json").write_text("{")
    assert "is damaged, so nobody can tell what the folder is" in refusal(tmp_path / "kept")
    (tmp_path / "kept" / "_command.json").write_text(json.dumps(made | {"format": 99}))
    assert "has format 99" in refusal(tmp_path / "kept")


@pytest.mark.parametrize(
    "name, what",
    [
        ("out/embeddings/part-00000.parquet", "a part of the embeddings"),
        ("out/labels/animals/part-00000.parquet", "a part of the labels animals"),
        ("out/rejects/part-00000.parquet", "a part of the rejects"),
        ("out/embeddings", "embeddings of a dataset"),
        ("out/labels/animals", "labels/animals of a dataset"),
        ("out/_dataset.json", "_dataset.json of a dataset"),
        ("out/_SUCCESS", "_SUCCESS of a dataset"),
        ("kept/parts/part-00000.parquet", "a part of a selection"),
        ("kept/selection.json", "selection.json of a selection"),
        ("unique/groups/00000.parquet", "groups of duplicates"),
        ("found/results.parquet", "the results of a search"),
        ("evaluated/per_class.parquet", "the numbers of each class of an evaluation"),
        ("index/index.faiss", "a faiss index"),
        ("vectors/npy/image_embeddings.npy", "a NumPy array"),
        ("chosen/left_out.parquet", "the rows that an export left out"),
    ],
)
def test_a_file_inside_leads_to_its_folder(place, name, what):
    found, known, further = facts(place / name)
    assert found == what
    if " of a" not in found or "part" in found:
        assert further == (f"python -m pipelines.inspect {place}/{name.split('/')[0]}",)
    if what == "a part of the embeddings":
        assert known["rows"] == "8" and known["shard"] == str(place / "0.tar") and known["model"] == "d 8"


def test_a_dataset_of_an_earlier_release_and_the_record_of_its_run(tmp_path):
    old = Path(ROOT) / "tests" / "data" / "format_1" / "dataset"
    what, found, _ = facts(old)
    assert what == "a dataset" and found["rows"] == "5 in 2 parts"
    assert (found["images"], found["captions"]) == ("3 embedded, 1 rejected", "5 embedded")
    assert found["made by"] == "embed with demo, fp32 on cpu"
    what, found, further = facts(old / "run.json")
    assert what == "the record of a run" and found["command"].startswith("python -m pipelines.embed")
    assert found["state"] == "complete" and further == (f"python -m pipelines.inspect {old}",)
    assert facts(old / "taxonomies" / "colors.parquet")[:2] == (
        "the class embeddings of a taxonomy",
        {"classes": "3", "columns": "class, prompts, class_embedding"},
    )


def test_shards_pictures_and_listings(tmp_path):
    make_tar(tmp_path / "a.tar", 3)
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress((tmp_path / "a.tar").read_bytes()))
    for name in ("a.tar", "a.tar.gz"):
        what, found, further = facts(tmp_path / name)
        assert (what, found["rows"]) == ("a webdataset tar", "3 samples")
        assert found["first"] == f"000000: a JPEG of {len(picture(0))} bytes, 'picture number 0'"
        assert further == (f"python -m pipelines.embed --input {tmp_path}/{name} --output out --model ViT-B/32",)
    write_tfrecord(tmp_path / "a.tfrecord", [{"key": "k", "jpg": picture(0), "txt": "words"}])
    assert facts(tmp_path / "a.tfrecord")[1]["first"] == f"k: a JPEG of {len(picture(0))} bytes, 'words'"
    make_parquet(tmp_path / "a.parquet", 7)
    what, found, _ = facts(tmp_path / "a.parquet")
    assert what == "a Parquet file with pictures" and found["rows"] == "7 in 2 row groups"
    assert found["columns"] == "key, image, caption"
    pq.write_table(pa.table({"url": ["a.jpg"], "caption": ["c"]}), tmp_path / "l.parquet")
    assert facts(tmp_path / "l.parquet")[0] == "a listing, as Parquet"
    (tmp_path / "l.csv").write_text("image,caption\na.jpg,words\nb.jpg,more\n")
    assert facts(tmp_path / "l.csv")[:2] == (
        "a listing",
        {"rows": "2", "columns": "image, caption", "offers": "images and captions", "size": "37 bytes"},
    )
    (tmp_path / "l.jsonl").write_text('{"caption": "a"}\n')
    assert facts(tmp_path / "l.jsonl")[1]["offers"] == "captions"
    make_folder(tmp_path / "photos", 3)
    what, found, _ = facts(tmp_path / "photos")
    assert what == "a folder of 3 pictures" and found["units"] == "1, each to become a part"
    what, found, further = facts(tmp_path / "photos" / "000001.jpg")
    assert (what, found["format"], found["pixels"]) == ("a picture", "JPEG", "40 × 30")
    assert further[0].startswith("python -m pipelines.search --input DATASET --image ")


def test_files_for_other_flags_and_a_page(place, tmp_path):
    (tmp_path / "animals.txt").write_text("cat\ndog\n")
    what, found, further = facts(tmp_path / "animals.txt")
    assert what.startswith("a text: classes") and found["classes"] == "2: cat, dog" and len(further) == 2
    (tmp_path / "animals.json").write_text('{"classes": ["cat"]}')
    assert facts(tmp_path / "animals.json")[0] == "a list of classes"
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / "classnames.txt").write_text("cat\n")
    assert facts(tmp_path / "bench")[0] == "a list of classes"
    (tmp_path / "rows.csv").write_text("shard,row\na,1\n")
    assert facts(tmp_path / "rows.csv")[0] == "a list of rows, as --selection takes it"
    pq.write_table(pa.table({"shard": ["a"], "row": [1]}), tmp_path / "rows.parquet")
    assert facts(tmp_path / "rows.parquet")[0] == "a list of rows, as --selection takes it"
    (tmp_path / "truth.csv").write_text("key,class\na,cat\n")
    assert facts(tmp_path / "truth.csv")[0] == "the right classes of samples, as --truth takes them"
    assert facts(place / "report.html")[0] == "a page that report or search wrote"


def test_checkpoints_in_the_formats_that_the_loader_reads(tmp_path, tiny_checkpoint):
    what, found, further = facts(tiny_checkpoint)
    assert what == "a checkpoint: a CLIP with sizes of its own, in the layout of OpenAI"
    assert found["activation"] == "quick_gelu" and further[0].endswith(f"--model {tiny_checkpoint}")
    state = published_model("vit", 0).state_dict()
    torch.save(state, tmp_path / "state.pt")
    torch.save(
        {"epoch": 3, "state_dict": {f"module.{name}": t for name, t in state.items()}}, tmp_path / "training.ckpt"
    )
    for name in ("state.pt", "training.ckpt"):
        what, found, further = facts(tmp_path / name)
        assert what.startswith("a checkpoint: a CLIP") and "state dict" in found["recognised by"]
        assert further[0].endswith("--activation quick_gelu")
    (tmp_path / "folder").mkdir()
    shutil.copy(tiny_checkpoint, tmp_path / "folder" / "open_clip_model.safetensors")
    sizes = {"image_size": 32, "layers": 3, "width": 128, "patch_size": 8}
    text = {"width": 64, "heads": 1, "layers": 2, "context_length": 77, "vocab_size": 49408}
    config = {"model_cfg": {"embed_dim": 48, "vision_cfg": {**sizes, "head_width": 64}, "text_cfg": text}}
    config |= {"preprocess_cfg": {}}
    (tmp_path / "folder" / "open_clip_config.json").write_text(json.dumps(config))
    what, found, _ = facts(tmp_path / "folder")
    assert what.startswith("a checkpoint: a CLIP") and found["activation"] == "gelu"
    assert "open_clip_config.json" in found["recognised by"]


class Hostile:
    """An object whose pickle makes a folder."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (self.folder,)


def test_no_code_of_a_file_is_run(tmp_path):
    trap = str(tmp_path / "trap")
    data = pickle.dumps(Hostile(trap))
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as file:
        file.writestr("archive/data.pkl", data)
        file.writestr("archive/version", "3")
    (tmp_path / "b.bin").write_bytes(data)
    (tmp_path / "c.pkl").write_bytes(data)
    with open(tmp_path / "d.npy", "wb") as file:
        np.save(file, np.array([Hostile(trap)], object), allow_pickle=True)
    for name in ("a.pt", "b.bin"):
        assert f"{tmp_path}/{name} is no checkpoint that embed reads: " in refusal(tmp_path / name)
    assert "is no file that a command reads; they read pictures, .tar, " in refusal(tmp_path / "c.pkl")
    assert facts(tmp_path / "d.npy")[1]["dtype"] == "object"
    assert not os.path.exists(trap)


def test_what_nobody_can_use_gets_one_sentence(tmp_path):
    (tmp_path / "empty.tar").touch()
    (tmp_path / "program.exe").write_bytes(b"MZ\x00\x00")
    (tmp_path / "cut.parquet").write_bytes(b"PAR1 and then nothing")
    (tmp_path / "cut.jpg").write_bytes(picture(0)[:300])
    make_tar(tmp_path / "cut.tar", 3)
    (tmp_path / "cut.tar").write_bytes((tmp_path / "cut.tar").read_bytes()[:4_000])
    (tmp_path / "new").mkdir()
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "a.py").touch()
    pq.write_table(pa.table({"n": [1]}), tmp_path / "numbers.parquet")
    assert refusal(tmp_path / "nowhere") == f"{tmp_path}/nowhere does not exist; check the path"
    assert refusal("ViT-B/32").startswith("ViT-B/32 is the name of a model")
    assert refusal(tmp_path / "empty.tar") == f"{tmp_path}/empty.tar is an empty file"
    assert "program.exe is no file that a command reads; they read pictures, .tar, " in refusal(
        tmp_path / "program.exe"
    )
    assert "is a damaged Parquet file" in refusal(tmp_path / "cut.parquet")
    assert "cannot be decoded: truncated" in refusal(tmp_path / "cut.jpg")
    assert "is a webdataset tar, and damaged: " in refusal(tmp_path / "cut.tar")
    assert "is an empty folder" in refusal(tmp_path / "new")
    assert "but 1 .py" in refusal(tmp_path / "code")
    assert "has no column of image bytes" in refusal(tmp_path / "numbers.parquet")


def test_counting_ends_after_some_seconds(tmp_path, monkeypatch):
    monkeypatch.setattr(inspect_inputs, "_SECONDS", -1.0)
    assert facts(make_tar(tmp_path / "a.tar", 3))[1]["rows"] == "at least 1 sample"


def test_damaged_bytes_of_any_kind_never_end_in_more_than_a_sentence(place, tmp_path):
    """Bytes are cut off and flipped at random, in the beginnings and ends that decide."""
    make_parquet(tmp_path / "a.parquet", 3)
    torch.save({"a": torch.zeros(2)}, tmp_path / "a.pt")
    (tmp_path / "l.csv").write_text("image,caption\na.jpg,words\n")
    (tmp_path / "l.json").write_text('[{"image": "a.jpg"}]')
    (tmp_path / "a.txt").write_text("cat\n")
    (tmp_path / "a.png").write_bytes(picture(0, format_="PNG"))
    (tmp_path / "a.safetensors").write_bytes(torch_free_weights())
    sources = [*tmp_path.glob("*.*"), place / "0.tar", place / "vectors" / "npy" / "image_embeddings.npy"]
    sources += [place / "out" / "embeddings" / "part-00000.parquet", place / "found" / "search.json"]
    rng = random.Random(7)
    for source in sources:
        whole = source.read_bytes()
        for number in range(12):
            data = bytearray(whole)
            if number % 3 == 0:
                del data[rng.randrange(len(data)) :]
            for _ in range(rng.randrange(1, 4) if data else 0):
                edge = rng.choice([rng.randrange(min(300, len(data))), -1 - rng.randrange(min(300, len(data)))])
                data[edge] = rng.randrange(256)
            path = tmp_path / "damaged" / source.name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(data)
            try:
                assert inspect_path(str(path)).what
            except ValueError as error:
                assert str(error) and "\n" not in str(error)


def torch_free_weights():
    header = json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(4)


def test_the_command_prints_one_screen(place, capsys, monkeypatch):
    assert command.main([str(place / "kept")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{place}/kept: a selection" and lines[1] == "  made by  filter: by clip_score, top_fraction 0.3"
    assert lines[-1].startswith("next: python -m pipelines.export") and len(lines) < 20
    assert command.main([str(place / "kept"), "--quiet"]) == 0 and capsys.readouterr().out == ""
    with pytest.raises(UsageError, match="PATH is missing: give a file or folder"):
        command.main([])


def test_names_from_data_do_not_control_the_terminal(tmp_path, capsys):
    make_tar(tmp_path / "a.tar", 1)
    hostile = tmp_path / "\x1b[2Ja.tar"
    (tmp_path / "a.tar").rename(hostile)
    assert command.main([str(hostile)]) == 0
    assert "\x1b" not in capsys.readouterr().out


def test_a_path_on_an_object_store(s3, tmp_path):
    s3.fs.put(make_tar(tmp_path / "a.tar", 3), "bucket/a.tar")
    assert facts("s3://bucket/a.tar")[1]["rows"] == "3 samples"
    assert refusal("s3://bucket/b.tar") == "s3://bucket/b.tar does not exist; check the path"
