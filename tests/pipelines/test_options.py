"""Flags and settings: each default stands once, in the field that the flag fills."""

import dataclasses

import pytest

from clip_transforms.clip.model_spec import ClipSpec
from clip_transforms.run.settings import Settings
from clip_transforms.shards.unit import ReaderOptions
from pipelines.flags import embed_parser
from pipelines.options import embed_settings

FIELDS = [(cls, field) for cls in (Settings, ReaderOptions, ClipSpec) for field in dataclasses.fields(cls)]
WITHOUT_A_FLAG = {"reader"}  # it has flags for its own fields
REQUIRED = ["--input", "a.tar", "--output", "out", "--model", "demo"]


def action_of(name):
    return next((action for action in embed_parser()._actions if action.dest == name), None)


@pytest.mark.parametrize("cls, field", FIELDS, ids=[f"{cls.__name__}.{field.name}" for cls, field in FIELDS])
def test_every_field_has_a_flag_with_its_default(cls, field, monkeypatch):
    if field.name in WITHOUT_A_FLAG:
        assert action_of(field.name) is None
        return
    if field.default is dataclasses.MISSING:
        assert "(required)" in action_of(field.name).help
        return
    for default in (field.default, "a default of tomorrow"):
        monkeypatch.setattr(field, "default", default)
        found = action_of(field.name).default
        assert (tuple(found) if isinstance(default, tuple) else found) == default


def test_a_command_line_of_the_required_flags_gives_the_settings_of_the_library():
    settings = embed_settings(embed_parser().parse_args(REQUIRED))
    assert settings == Settings(("a.tar",), "out", ClipSpec("demo"))


def test_every_flag_reaches_its_field(tmp_path):
    (tmp_path / "t.txt").write_text("cat\n")
    values = {
        "input": "b.tar",
        "output": "new",
        "model": "other.pt",
        "activation": "gelu",
        "precision": "bf16",
        "device": "cpu",
        "taxonomy": tmp_path / "t.txt",
        "columns": "a=b:int32",
        "embedding_dtype": "float16",
        "retry_rejects": "all",
        "input_format": "parquet",
        "captions": "all",
        "allow_uri": "https://x/",
        "max_reject_fraction": 0.5,
        "units": "2/9",
        "exif_orientation": "apply",
    }
    flags = []
    for action in embed_parser()._actions:
        flag = action.option_strings[0]
        if action.dest in ("help", "dry_run", "quiet"):
            continue
        value = values.get(flag[2:], 7 if action.type is int else "x")
        flags += [flag] if action.nargs == 0 else [f"{flag}={value}"]
    settings = embed_settings(embed_parser().parse_args(flags))
    usual = Settings(("a.tar",), "out", ClipSpec("demo"))
    for ours, theirs in ((settings, usual), (settings.reader, usual.reader), (settings.model, usual.model)):
        for field in dataclasses.fields(ours):
            assert getattr(ours, field.name) != getattr(theirs, field.name), field.name
