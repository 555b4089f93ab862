"""A dataset made with other settings is refused in the words of the command line."""

import dataclasses
import re

import pytest
from conftest import make_tar

from clip_transforms import ClipSpec, embed_shards
from clip_transforms.parts.fingerprint import FingerprintError, check_same
from clip_transforms.run.settings import Settings
from pipelines.flags import embed_parser

USUAL = Settings(("a.tar",), "out", ClipSpec("demo"))
CHECKPOINT = USUAL.resolve_checkpoint()
FIELDS = USUAL.fingerprint_fields(CHECKPOINT)
OF_THE_CHECKPOINT = {"model", "heads", "preprocessing"}
FLAGS = {flag for action in embed_parser()._actions for flag in action.option_strings}


def sentence(old, new):
    with pytest.raises(FingerprintError) as raised:
        check_same("out", old, new)
    return str(raised.value)


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_is_named_by_its_flag_with_both_values_and_the_way_out(name):
    said = sentence(FIELDS | {name: "the old value"}, FIELDS | {name: "the new value"})
    flag = "" if name == "tokenizer" else "--model" if name in OF_THE_CHECKPOINT else f"--{name}"
    subject = r"the tokenizer of this package" if name == "tokenizer" else rf"(the [\w ,()-]+ of )?{flag}"
    start = r"--output out holds a dataset made with other settings: "
    values = r" was 'the old value', but is now 'the new value'\. "
    way_out = "Give another --output, the old settings, or --overwrite to replace it"
    assert re.fullmatch(f"{start}{subject}{values}{way_out}", said), said
    assert set(re.findall(r"--\w+", said)) <= FLAGS


@pytest.mark.parametrize(
    "changed, said",
    [
        ({"fast_decode": True}, "--fast_decode was not given, but is given now"),
        ({"exif_orientation": "apply"}, "--exif_orientation was 'ignore', but is now 'apply'"),
        ({"embedding_dtype": "float16"}, "--embedding_dtype was 'float32', but is now 'float16'"),
        ({"reader": dataclasses.replace(USUAL.reader, limit=3)}, "--limit was not given, but is now '3'"),
        ({"reader": dataclasses.replace(USUAL.reader, key_column="id")}, "--key_column was not given, but is now 'id'"),
        ({"reader": dataclasses.replace(USUAL.reader, captions="all")}, "--captions was not given, but is now 'all'"),
    ],
    ids=["fast_decode", "exif_orientation", "embedding_dtype", "limit", "key_column", "captions"],
)
def test_a_setting_changes_the_field_of_its_flag_and_no_other(changed, said):
    other = dataclasses.replace(USUAL, **changed)
    fields = other.fingerprint_fields(other.resolve_checkpoint())
    assert f": {said}. Give" in sentence(FIELDS, fields)
    back = sentence(fields, FIELDS)
    assert back.count(" was ") == 1 and said.split()[0] in back


def test_another_model_is_named_first_and_what_follows_from_it_is_not_named():
    other = FIELDS | {"model": "f" * 64, "heads": "12, 8", "activation": "gelu", "precision": "fp32", "limit": "3"}
    other["preprocessing"] = FIELDS["preprocessing"].replace("48", "224")
    assert other["preprocessing"] != FIELDS["preprocessing"]
    with pytest.raises(FingerprintError) as raised:
        check_same("out", FIELDS, other, ("demo", "ViT-B/32"))
    assert str(raised.value) == (
        "--output out holds a dataset made with other settings: it was made with --model demo, but now --model is "
        "ViT-B/32; --limit was not given, but is now '3'; --precision was 'auto', but is now 'fp32'. Give another "
        "--output, the old settings, or --overwrite to replace it"
    )


def test_a_model_whose_file_was_moved_is_the_same_and_one_whose_file_was_replaced_is_another():
    check_same("out", FIELDS, FIELDS, ("/old/x.pt", "/new/x.pt"))
    with pytest.raises(FingerprintError, match="the SHA-256 of --model was .*, but is now 'f+'"):
        check_same("out", FIELDS, FIELDS | {"model": "f" * 64}, ("/x.pt", "/x.pt"))


def test_fast_decoding_is_named_beside_another_model():
    fast = dataclasses.replace(USUAL, fast_decode=True).resolve_checkpoint().preprocessing.describe()
    with pytest.raises(FingerprintError, match="is ViT-B/32; --fast_decode was not given, but is given now. Give"):
        check_same("out", FIELDS, FIELDS | {"model": "f" * 64, "preprocessing": fast}, ("demo", "ViT-B/32"))


def test_a_field_that_an_older_version_did_not_record():
    old = {name: value for name, value in FIELDS.items() if name != "max_image_pixels"}
    assert "--max_image_pixels was not given, but is now '89478485'" in sentence(old, FIELDS)


def test_the_library_says_the_same_sentence(tiny_checkpoint, tmp_path):
    tar, out, spec = make_tar(tmp_path / "a.tar", 1), str(tmp_path / "out"), ClipSpec(tiny_checkpoint, device="cpu")
    embed_shards([tar], out, spec)
    said = f"^--output {out} holds a dataset made with other settings: --embedding_dtype was 'float32', but is now "
    with pytest.raises(FingerprintError, match=said):
        embed_shards([tar], out, spec, embedding_dtype="float16")
