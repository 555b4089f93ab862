"""`--captions all` over an output that is there: ended early, killed, overwritten, or made from another cut."""

import importlib
import os
import signal
import subprocess
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import ROOT, files_of, picture, rows_of
from forked import Process
from test_all_captions import ALL, make_line_tar

from clip_transforms import ReaderOptions, embed_shards
from clip_transforms.parts.fingerprint import FingerprintError
from clip_transforms.parts.footers import read_footer
from clip_transforms.parts.manifest import read_run


@pytest.fixture
def three(tmp_path, embed):
    """Three tars, and a function that embeds them with `--captions all`; the output is `out`."""
    for i in range(3):
        make_line_tar(tmp_path / f"{i}.tar", [["a", f"b {i}"], ["c"]], first=10 * i)

    def run(*flags, output="out", code=0):
        embed(*(tmp_path / f"{i}.tar" for i in range(3)), output=tmp_path / output, flags=[*ALL, *flags], code=code)
        return read_run(str(tmp_path / output))["units"] if code == 0 else None

    return run


@pytest.mark.parametrize("harm", ["gone", "of another unit", "cut"])
def test_a_unit_whose_captions_are_not_there_is_embedded_again(three, harm, tmp_path):
    assert three()["committed"] == 3
    before = files_of(tmp_path / "out")
    first, second, _ = sorted((tmp_path / "out" / "captions").glob("*.parquet"))
    if harm == "gone":
        first.unlink()
    else:
        data = second.read_bytes() if harm == "of another unit" else first.read_bytes()[:-20]
        first.write_bytes(data)
    assert three() == {"input": 3, "committed": 1, "skipped": 2, "labelled": 0}
    assert files_of(tmp_path / "out") == before
    assert three()["skipped"] == 3


@pytest.mark.parametrize("place", range(4), ids=["captions", "rejects", "embeddings", "next unit"])
def test_a_run_that_ends_at_any_file_goes_on_to_the_same_bytes(three, place, tmp_path, monkeypatch):
    from clip_transforms import storage

    three(output="calm")
    commit, committed = storage.commit_file, []

    def full(local, uri):
        if f"{os.sep}_temporary" not in os.path.relpath(uri, tmp_path) and uri.endswith(".parquet"):
            if len(committed) == 3 + place and "plan.parquet" not in uri:
                raise OSError(28, "No space left on device", uri)
            committed.append(os.path.relpath(uri, tmp_path / "out"))
        return commit(local, uri)

    with monkeypatch.context() as patch:
        patch.setattr(storage, "commit_file", full)
        three(code=1)
    assert [name.split("/")[0] for name in committed if name.endswith(".parquet")][:3] == [
        "captions",
        "rejects",
        "embeddings",
    ]
    assert three()["skipped"] == 1 + (place == 3)
    assert files_of(tmp_path / "out") == files_of(tmp_path / "calm") and len(files_of(tmp_path / "out")) == 9


@pytest.mark.timeout(60)
def test_a_killed_run_goes_on_to_the_same_bytes(tiny_checkpoint, tmp_path, slow_commits, spec):
    tars = [make_line_tar(tmp_path / f"{i}.tar", [["a", f"b {i}"], ["c"]], first=10 * i) for i in range(6)]
    slow, settings = tmp_path / "slow", {"reader": ReaderOptions(captions="all"), "batch_size": 4}
    code = (
        "from clip_transforms import ClipSpec, ReaderOptions, embed_shards\n"
        f"embed_shards({tars!r}, {str(slow)!r}, ClipSpec({tiny_checkpoint!r}, precision='fp32'), "
        "reader=ReaderOptions(captions='all'), batch_size=4)"
    )
    process = Process("-c", code, cwd=ROOT, env=slow_commits, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 40
    while not list(slow.glob("embeddings/*.parquet")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=20)
    assert 0 < len(list(slow.glob("embeddings/*.parquet"))) < 6
    result = embed_shards(tars, slow, spec, **settings)
    embed_shards(tars, tmp_path / "calm", spec, **settings)
    assert result["units"]["skipped"] > 0 and files_of(slow) == files_of(tmp_path / "calm")


def test_a_changed_flag_is_refused_and_overwrite_takes_the_captions_along(embed, three, tmp_path):
    three()
    embed(tmp_path / "*.tar", output=tmp_path / "plain")
    inputs = [tmp_path / f"{i}.tar" for i in range(3)]
    with pytest.raises(FingerprintError, match="--captions was 'all', but is now not given. Give another --output"):
        embed(*inputs, output=tmp_path / "out")
    assert len(list((tmp_path / "out" / "captions").glob("*"))) == 3
    embed(*inputs, output=tmp_path / "out", flags=["--overwrite"])
    assert list((tmp_path / "out" / "captions").glob("*")) == []
    assert files_of(tmp_path / "out") == files_of(tmp_path / "plain")
    three("--overwrite")
    assert len(rows_of(tmp_path / "out", "captions")) == 9


def test_an_interrupted_overwrite_leaves_no_captions_of_other_embeddings(embed, three, tmp_path, monkeypatch):
    from clip_transforms.parts import writer

    three()
    commit, committed = writer.UnitWriter.commit, []

    def full(self, *args):
        if committed:
            raise OSError(28, "No space left on device", "x")
        committed.append(self)
        return commit(self, *args)

    inputs = [tmp_path / f"{i}.tar" for i in range(3)]
    with monkeypatch.context() as patch:
        patch.setattr(writer.UnitWriter, "commit", full)
        embed(*inputs, output=tmp_path / "out", flags=["--overwrite"], code=1)
    footers = {kind: digests(tmp_path / "out", kind) for kind in ("embeddings", "captions")}
    assert len(footers["captions"]) == 2 and footers["captions"].items() <= footers["embeddings"].items()


def digests(output, kind):
    return {path.name: read_footer(str(path))["digest"] for path in (output / kind).glob("*.parquet")}


def test_parts_of_a_former_cut_take_their_captions_along(embed, tmp_path, monkeypatch):
    columns = {"image": [picture(i) for i in range(4)], "caption": [["a", "b"]] * 4}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet", row_group_size=2)
    cut = importlib.import_module("clip_transforms.shards.cut")
    with monkeypatch.context() as patch:
        patch.setattr(cut, "ROWS_PER_PARQUET_UNIT", 2)
        embed(tmp_path / "a.parquet", output=tmp_path / "out", flags=ALL)
    assert len(digests(tmp_path / "out", "captions")) == 2
    embed(tmp_path / "a.parquet", output=tmp_path / "out", flags=ALL)
    assert digests(tmp_path / "out", "captions") == digests(tmp_path / "out", "embeddings")
    assert len(rows_of(tmp_path / "out", "captions")) == 8 and len(digests(tmp_path / "out", "captions")) == 1
