"""`inspect`: one screen for inputs, checkpoints and files for flags, and one sentence for what nobody can use."""

import gzip
import json
import os
import pickle
import random
import shutil
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from conftest import make_folder, make_parquet, make_tar, picture, published_model
from inspected import facts, made_place, refusal  # noqa: F401
from tfrecords import write_tfrecord

from clip_transforms.run import inspect_inputs
from clip_transforms.run.inspect_path import inspect_path
from pipelines import inspect as command


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
