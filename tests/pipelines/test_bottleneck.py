"""A stage that is made slow is the one that the closing line names, with what helps against it."""

import json
import time

import pytest
from conftest import make_tar

from clip_transforms.clip.model import ClipModel
from clip_transforms.engine import decode
from clip_transforms.run import embed_units
from clip_transforms.storage import writing

SECONDS = 0.3


def slow_disk(monkeypatch):
    def slow(*args):
        for batch in original(*args):
            time.sleep(SECONDS)
            yield batch

    original = embed_units.read_unit
    monkeypatch.setattr(embed_units, "read_unit", slow)


def slowed(owner, name):
    def slow(monkeypatch):
        def later(*args, **more):
            time.sleep(SECONDS)
            return original(*args, **more)

        original = getattr(owner, name)
        monkeypatch.setattr(owner, name, later)

    return slow


@pytest.mark.parametrize(
    "slow, name, hint",
    [
        (slow_disk, "reading", "a disk or a bucket closer"),
        (slowed(decode, "_decode_into"), "decoding", "--fast_decode"),
        (slowed(ClipModel, "embed_images"), "the model", "a GPU makes it faster"),
        (slowed(writing, "_fsync"), "writing", "a faster disk for --output"),
    ],
    ids=["slow disk", "slow decoder", "slow model", "slow output"],
)
def test_the_slow_stage_is_named_with_what_helps(slow, name, hint, embed, tmp_path, monkeypatch, capsys):
    slow(monkeypatch)
    shards = [make_tar(tmp_path / f"{i}.tar", 6, first=10 * i) for i in range(2)]
    embed(*shards, output=tmp_path / "out", flags=["--batch_size", "2"])
    last = capsys.readouterr().out.splitlines()[-1]
    assert f"; {name} is the bottleneck: " in last and hint in last
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert run["speed"]["bottleneck"] == name and run["speed"]["hint"] in last
    seconds = run["speed"]["seconds"]
    assert {"read", "decode", "forward", "write", "wait for read", "wait for decode", "wait for embed"} <= set(seconds)
