"""What the command says of pictures and checkpoints that are not as one would think, and the flags for them."""

import io
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import safetensors.torch
from conftest import ROOT, picture, rows_of, write_tar
from count_sources import count
from forked import run as run_python
from PIL import Image

from pipelines import embed as embed_command
from pipelines import label as label_command
from pipelines import models as models_command


def oriented(seed, orientation):
    image, exif, buffer = Image.open(io.BytesIO(picture(seed))), Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    image.save(buffer, "JPEG", exif=exif, quality=95)
    return buffer.getvalue()


def sixteen_bits():
    buffer = io.BytesIO()
    Image.fromarray(np.full((30, 40), 40_000, np.uint16)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def tar(tmp_path):
    good = {"a.jpg": oriented(0, 6), "b.jpg": oriented(1, 1), "c.png": sixteen_bits(), "d.jpg": oriented(2, 8)}
    bad = {"e.jpg": picture(3)[:100], "f.jpg": b"8BPS\0\1" + bytes(40)}
    return write_tar(tmp_path / "a.tar", [*good.items(), *bad.items()])


def run(capsys, main, *argv):
    """Run a command; return its exit code, what it printed, and the sentence it failed with."""
    try:
        code, error = main([*map(str, argv)]), ""
    except ValueError as wrong:
        code, error = 2, str(wrong)
    return code, capsys.readouterr().out, error


def test_orientations_that_were_ignored_and_clipped_channels_are_counted(tar, tmp_path, tiny_checkpoint, capsys):
    flags = ["--input", tar, "--model", tiny_checkpoint, "--device", "cpu", "--max_reject_fraction", "1"]
    apply = ["--exif_orientation", "apply"]
    code, said, error = run(capsys, embed_command.main, *flags, "--output", tmp_path / "usual")
    assert code == 0
    notes = sorted(line for line in said.splitlines() if line.startswith("note: ") and " image" in line)
    assert notes == [
        "note: 1 image of 16 bits or of floats per channel, whose values were clipped to 0 to 255, as published, so "
        "that it is probably white or black; scale it to 8 bits first, as docs/fidelity.md shows",
        "note: 2 images with an EXIF orientation, which was ignored, as published; --exif_orientation apply turns them",
    ]
    rejects = {row["key"]: row["reason"] for row in rows_of(tmp_path / "usual", "rejects")}
    assert rejects == {"e": "truncated", "f": "unknown format"}
    code, said, error = run(capsys, embed_command.main, *flags, *apply, "--output", tmp_path / "turned")
    assert code == 0 and "EXIF" not in said
    usual, turned = (rows_of(tmp_path / name) for name in ("usual", "turned"))
    same = [a["image_embedding"] == b["image_embedding"] for a, b in zip(usual, turned, strict=True)]
    assert same == [False, True, True, False]
    assert [(row["width"], row["height"]) for row in turned] == [(40, 30)] * 4
    code, said, error = run(capsys, embed_command.main, *flags, *apply, "--output", tmp_path / "usual")
    assert code == 2 and "--exif_orientation was 'ignore', but is now 'apply'" in error
    code, said, error = run(capsys, embed_command.main, *flags, "--output", tmp_path / "turned")
    assert code == 2 and "--exif_orientation was 'apply', but is now 'ignore'" in error


def test_photos_that_lie_on_their_side_are_told_of_before_they_are_embedded(tmp_path, tiny_checkpoint, capsys):
    photos = tmp_path / "photos"
    photos.mkdir()
    for i, orientation in enumerate([6, 1, 3]):
        (photos / f"{i}.jpg").write_bytes(oriented(i, orientation))
    flags = ["--input", photos, "--output", tmp_path / "out", "--model", tiny_checkpoint, "--device", "cpu"]
    told = (
        "note: 2 of 3 pictures looked at are stored turned, as EXIF says, and are embedded so, as published; "
        "--exif_orientation apply turns such pictures first"
    )
    code, said, error = run(capsys, embed_command.main, *flags, "--dry_run", "--exif_orientation", "apply")
    assert code == 0 and "EXIF" not in said
    code, said, error = run(capsys, embed_command.main, *flags)
    first, second, third, *_ = said.splitlines()
    assert (code, second) == (0, told) and third.startswith("1 unit committed")
    code, said, error = run(capsys, embed_command.main, *flags)  # too late for the flag
    assert code == 0 and told not in said


def test_a_part_says_that_its_pictures_were_turned(tar, tmp_path, tiny_checkpoint, embed):
    embed(tar, output=tmp_path / "out", flags=["--exif_orientation", "apply", "--max_reject_fraction", "1"])
    (part,) = (tmp_path / "out" / "embeddings").glob("*.parquet")
    provenance = json.loads(pq.read_metadata(part).metadata[b"clip"])["provenance"]
    assert "EXIF orientation applied" in provenance["preprocessing"]


@pytest.fixture
def two_models(tiny_checkpoint, tmp_path):
    """One file with two models: the tiny checkpoint, and one that sees everything upside down."""
    weights = safetensors.torch.load_file(tiny_checkpoint)
    other = {name: -tensor if name == "visual.proj" else tensor for name, tensor in weights.items()}
    both = {f"{start}.{name}": t.clone() for start, part in (("a", weights), ("b", other)) for name, t in part.items()}
    safetensors.torch.save_file(both, tmp_path / "two.safetensors", {"activation": "quick_gelu"})
    return tmp_path / "two.safetensors"


def test_the_model_of_a_file_with_two_is_chosen_stays_and_labels(two_models, tar, tmp_path, tiny_checkpoint, capsys):
    (tmp_path / "t.txt").write_text("cat\ndog\n")
    usual = ["--input", tar, "--device", "cpu", "--max_reject_fraction", "1"]
    out = ["--output", tmp_path / "out"]
    code, said, error = run(capsys, embed_command.main, *usual, *out, "--model", two_models)
    assert code == 2 and "choose one with --checkpoint_key a or --checkpoint_key b" in error
    assert not (tmp_path / "out").exists()
    code, said, error = run(capsys, models_command.main, "--check", two_models)
    assert code == 2 and "--checkpoint_key b" in error
    assert run(capsys, models_command.main, "--check", two_models, "--checkpoint_key", "b")[0] == 0

    chosen = [*usual, *out, "--model", two_models, "--checkpoint_key"]
    assert run(capsys, embed_command.main, *chosen, "b")[0] == 0
    single = ["--model", tiny_checkpoint, "--output", tmp_path / "single"]
    assert run(capsys, embed_command.main, *usual, *single)[0] == 0
    ours, theirs = (np.array([row["image_embedding"] for row in rows_of(tmp_path / n)]) for n in ("out", "single"))
    np.testing.assert_array_equal(ours, -theirs)
    code, said, error = run(capsys, embed_command.main, *chosen, "a")
    assert code == 2 and "--checkpoint_key was 'b', but is now 'a'" in error

    code, said, error = run(capsys, label_command.main, "--input", tmp_path / "out", "--taxonomy", tmp_path / "t.txt")
    assert code == 0, error
    code, said, error = run(capsys, embed_command.main, *chosen, "a", "--overwrite", "--taxonomy", tmp_path / "t.txt")
    assert code == 0, error
    ours = np.array([row["image_embedding"] for row in rows_of(tmp_path / "out")])
    np.testing.assert_array_equal(ours, theirs)


# HEIC, with and without the extra


def heic(seed):
    buffer = io.BytesIO()
    Image.open(io.BytesIO(picture(seed))).save(buffer, "HEIF", quality=80)
    return buffer.getvalue()


@pytest.fixture
def phone(tmp_path):
    """A folder and a tar with pictures as a phone writes them."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for seed, name in enumerate(["IMG_1.HEIC", "IMG_2.heic", "IMG_3.heif", "IMG_4.hif", "IMG_5.jpg"]):
        (folder / name).write_bytes(heic(seed))
    tar = write_tar(tmp_path / "phone.tar", [(f"{i}.heic", heic(10 + i)) for i in range(2)])
    return [folder, tar]


def test_heic_is_embedded_like_any_picture(phone, tmp_path, embed):
    embed(*phone, output=tmp_path / "out")
    keys = ["0", "1", "IMG_1.HEIC", "IMG_2.heic", "IMG_3.heif", "IMG_4.hif", "IMG_5.jpg"]
    rows = rows_of(tmp_path / "out")
    assert sorted(row["key"] for row in rows) == keys and all(row["image_embedding"] for row in rows)
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    offered = count(map(str, phone))
    assert (offered["samples"], offered["image"]) == (run["input"]["samples"], run["input"]["image.embedded"]) == (7, 7)


WITHOUT = """
import sys
sys.modules["pillow_heif"] = None
from pipelines import embed
sys.exit(embed.main(sys.argv[1:]))
"""
CURE = "HEIC needs the extra [heic]: pip install pillow-heif"


def test_without_the_extra_every_heic_is_named_with_the_extra(phone, tmp_path, tiny_checkpoint):
    flags = ["--model", tiny_checkpoint, "--output", str(tmp_path / "out"), "--device", "cpu"]
    done = run_python("-c", WITHOUT, "--input", *phone, *flags, cwd=ROOT)
    assert done.returncode == 3, done.stderr
    said = done.stdout + done.stderr
    assert f"a folder of 1 picture; not read: 2 .heic ({CURE}), 1 .heif ({CURE}), 1 .hif ({CURE})" in said
    assert f"note: 2 .heic ({CURE}) members that were not read" in said
    (reject,) = rows_of(tmp_path / "out", "rejects")
    assert (reject["key"], reject["reason"]) == ("IMG_5.jpg", "unknown format") and CURE in reject["message"]


def test_without_the_extra_a_folder_of_heic_alone_is_refused_with_the_extra(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.heic").write_bytes(heic(1))
    flags = ["--model", "demo", "--output", str(tmp_path / "out")]
    done = run_python("-c", WITHOUT, "--input", tmp_path / "photos", *flags, cwd=ROOT)
    assert done.returncode and f"1 .heic ({CURE})" in done.stderr and not (tmp_path / "out").exists()
