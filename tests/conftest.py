"""Fixtures: small real checkpoints from the published model's own class, and small real shards."""

import importlib
import io
import json
import logging
import os
import runpy
import signal
import subprocess
import sys
import tarfile
import threading
import urllib.request

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from forked import Process, run
from PIL import Image

from benchmarks.published import published_module
from pipelines import terminal

# No test leaves this machine; whatever asks a hub or a cache must fail at once.
os.environ["HF_HUB_OFFLINE"] = "1"
# Torch's threads spin while they wait for each other; where other processes want the cores too, as in tests that start
# some, small models then take five times as long. Nothing that is computed depends on it.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Some machines forbid Python to keep what it has compiled. Each process that tests start would then compile all modules
# of ours again.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
# argparse looks for translations of its words on disk, for each of the many parsers that Beam makes.
os.environ["LANGUAGE"] = "C"
# Commands that tests start must heed signals as in a terminal. What is ignored here, as under nohup or in a background
# job, would be ignored by them.
for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, handler)
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
HOOKS = os.path.join(ROOT, "tests", "hooks")
# The whole suite, with what `--precision auto` asks of the processor answered by 0 (it has no AMX) or 1 (it has): here,
# and through PYTHONPATH in the processes that tests start.
if "CLIP_TRANSFORMS_TEST_AMX" in os.environ:
    runpy.run_path(os.path.join(HOOKS, "sitecustomize.py"))
    sys.path.append(HOOKS)  # `pipelines.embed --processes` hands it on
    os.environ["PYTHONPATH"] = os.pathsep.join([HOOKS, os.environ.get("PYTHONPATH", "")])


def published_model(kind, seed):
    """A small CLIP of the published class, random, with every weight and statistic made to matter."""
    import torch

    torch.manual_seed(seed)
    sizes = {
        "vit": dict(image_resolution=32, vision_layers=3, vision_width=128, vision_patch_size=8),
        "resnet": dict(image_resolution=64, vision_layers=(1, 2, 1, 1), vision_width=32, vision_patch_size=None),
    }[kind]
    text = dict(context_length=77, vocab_size=49408, transformer_width=64, transformer_heads=1, transformer_layers=2)
    model = published_module("model").CLIP(embed_dim=48, **sizes, **text)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("bn3.weight"):
                tensor.uniform_(0.5, 1.5)  # published as zero, which would switch most of the network off
            elif name.endswith("bias"):
                tensor.normal_(0, 0.1)
        if kind == "resnet":
            # Statistics that fit the activations, then bent: otherwise all pictures come out alike.
            norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
            for norm in norms:
                norm.momentum = 1.0
            model.train().encode_image(torch.randn(16, 3, 2, 2).repeat_interleave(32, 2).repeat_interleave(32, 3))
            for norm in norms:
                norm.running_mean += 0.3 * norm.running_var.sqrt() * torch.randn_like(norm.running_mean)
                norm.running_var *= torch.empty_like(norm.running_var).uniform_(0.5, 2)
    return model.eval()


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory):
    """A small ViT checkpoint that says its activation; image side 32, d 48."""
    import safetensors.torch

    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    state = {name: tensor.contiguous() for name, tensor in published_model("vit", 0).state_dict().items()}
    safetensors.torch.save_file(state, path, {"activation": "quick_gelu"})
    return str(path)


@pytest.fixture
def spec(tiny_checkpoint):
    """The tiny checkpoint as the plain functions take it; in fp32, so that no number depends on the processor."""
    from clip_transforms import ClipSpec

    return ClipSpec(tiny_checkpoint, precision="fp32")


def picture(seed, size=(40, 30), format_="JPEG", mode="RGB"):
    """Encoded bytes of a picture that is like no other seed's."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (4, 4, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).convert(mode).save(buffer, format_)
    return buffer.getvalue()


def write_tar(path, samples):
    """Write a tar of (member name, bytes)."""
    with tarfile.open(path, "w") as tar:
        for name, data in samples:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return str(path)


def write_odd_tar(path):
    """Three samples: a picture that is damaged, a caption that is not UTF-8, and one without a picture."""
    return write_tar(path, pair("a", 0, jpg=b"broken") + pair("b", 1, caption=b"\xff") + pair("c", 2)[1:])


def pair(key, seed, caption=None, **members):
    """The members of a sample: a picture, a caption, and others by extension."""
    caption = f"picture number {seed}" if caption is None else caption
    found = {"jpg": picture(seed), "txt": caption.encode() if isinstance(caption, str) else caption, **members}
    return [(f"{key}.{extension}", data) for extension, data in found.items() if data is not None]


def make_tar(path, count, first=0):
    """A tar of `count` good samples."""
    return write_tar(path, [m for i in range(first, first + count) for m in pair(f"{i:06d}", i)])


def make_parquet(path, count, first=0, row_group_size=5):
    """A Parquet file of `count` good samples with image bytes."""
    rows = range(first, first + count)
    table = pa.table(
        {
            "key": [f"{i:06d}" for i in rows],
            "image": [picture(i) for i in rows],
            "caption": [f"picture number {i}" for i in rows],
        }
    )
    pq.write_table(table, path, row_group_size=row_group_size)
    return str(path)


def make_folder(path, count, first=0):
    """A folder of `count` pictures with captions."""
    path.mkdir(parents=True, exist_ok=True)
    for i in range(first, first + count):
        (path / f"{i:06d}.jpg").write_bytes(picture(i))
        (path / f"{i:06d}.txt").write_text(f"picture number {i}\n")
    return str(path)


@pytest.fixture
def taxonomy_file(tmp_path):
    path = tmp_path / "animals.json"
    path.write_text(json.dumps({"templates": ["a photo of a {}.", "a {c}"], "classes": ["cat", "dog", "red star"]}))
    return str(path)


@pytest.fixture(autouse=True)
def loud():
    """A command with `--quiet` does not silence the tests behind it."""
    yield
    terminal.be_quiet(False)


@pytest.fixture
def without_beam(monkeypatch):
    """Commands in this process do their work by the plain functions, which takes a third of the time."""

    class Done:
        state = "DONE"

        def wait_until_finish(self):
            return self.state

    def start(pipeline, transform):
        transform.run_here()
        return Done()

    monkeypatch.setattr("pipelines.launch.start", start)


@pytest.fixture
def embed(embed_with_beam, without_beam):
    """Run `pipelines.embed` in this process with the tiny checkpoint. It must end with the exit code `code`, if any.

    In fp32 unless the flags say otherwise, so that the numbers do not depend on the processor. Beam only takes part
    with `embed_with_beam`.
    """
    return embed_with_beam


@pytest.fixture
def embed_with_beam(tiny_checkpoint, monkeypatch):
    """`embed`, through Beam's in-process runner."""
    from pipelines import embed as command

    # On a machine with many cores or GPUs too it is this process that embeds, unless a test asks for several.
    monkeypatch.setattr("clip_transforms.run.places._CORES_EACH", 1 << 20)
    monkeypatch.setattr("clip_transforms.run.places.gpus_for", lambda device: [])

    def run(*inputs, output, flags=(), code=0):
        argv = ["--input", *map(str, inputs), "--output", str(output), "--model", tiny_checkpoint]
        found = command.main([*argv, "--precision", "fp32", *map(str, flags)])
        assert code in (None, found), f"exit code {found}"
        return found

    return run


@pytest.fixture(scope="session")
def s3_server():
    """The port of a real S3 server on loopback."""
    moto = pytest.importorskip("moto.server")
    logging.getLogger("werkzeug").setLevel("ERROR")
    server = moto.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    yield server.get_host_and_port()[1]
    server.stop()


@pytest.fixture
def s3(s3_server, monkeypatch):
    """An empty bucket `s3://bucket` behind a `FaultyProxy`, with the packages' own retries switched off."""
    import fsspec
    import s3fs
    from faulty_server import FaultyProxy

    from clip_transforms.storage import retry

    keys = {"AWS_ACCESS_KEY_ID": "AKIAFAKEFAKEFAKE", "AWS_SECRET_ACCESS_KEY": "c2VjcmV0/c2VjcmV0"}
    for name, value in {**keys, "AWS_EC2_METADATA_DISABLED": "true", "AWS_DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
    monkeypatch.setattr(retry, "FIRST_WAIT", 0.01)
    with FaultyProxy(s3_server) as proxy:
        kwargs = {"read_timeout": 0.5, "connect_timeout": 1, "retries": {"max_attempts": 0}}
        monkeypatch.setitem(fsspec.config.conf, "s3", {"endpoint_url": proxy.url, "config_kwargs": kwargs})
        s3fs.S3FileSystem.clear_instance_cache()
        # For the test's own requests, past the proxy: a busy machine is slower than the timeout of what is tested.
        own = {"endpoint_url": f"http://127.0.0.1:{s3_server}", "config_kwargs": {"read_timeout": 60}}
        proxy.fs = fsspec.filesystem("s3", use_listings_cache=False, **own)
        for method, path in (("POST", "moto-api/reset"), ("PUT", "bucket")):
            request = urllib.request.Request(f"http://127.0.0.1:{s3_server}/{path}", method=method)
            urllib.request.urlopen(request).close()
        yield proxy
        s3fs.S3FileSystem.clear_instance_cache()


def parser_of(name):
    """The parser of a command."""
    module = "pipelines.flags" if name in ("embed", "label") else f"pipelines.{name}"
    return getattr(importlib.import_module(module), f"{name}_parser")()


def command(module, *argv, timeout=100, cwd=ROOT, **kwargs):
    """Run a command as a user does; the finished process, with its output."""
    return run("-m", module, *argv, timeout=timeout, cwd=cwd, **kwargs)


def browse(*argv, timeout=30):
    """Start `pipelines.browse` as it is typed, load its page, and end it as a person does; what it printed."""
    with Process(
        "-m", "pipelines.browse", *argv, "--no_open", "--port", "0", stdout=subprocess.PIPE, text=True
    ) as page:
        stop = threading.Timer(timeout, page.kill)
        stop.start()
        try:
            said = [page.stdout.readline() for _ in range(2)]
            with urllib.request.urlopen(said[1].split()[0], timeout=timeout) as answer:
                assert b"<title>" in answer.read()
            page.send_signal(signal.SIGINT)
            assert page.wait(timeout=timeout) == 0
        finally:
            stop.cancel()
            page.kill()
    return "".join(said)


@pytest.fixture(scope="session")
def slow_commits():
    """The environment of a process whose parts take half a second each to get their names in an output called `slow`.

    So a few small shards keep a run going for seconds, on a fast machine too, and a test meets it in its middle.
    """
    path = os.pathsep.join([HOOKS, os.environ.get("PYTHONPATH", "")])
    return os.environ | {"PYTHONPATH": path, "CLIP_TRANSFORMS_TEST_SLOW_COMMITS": "1"}


@pytest.fixture(scope="session")
def service(slow_commits):
    """The flags of one job service and worker pool for all tests, as for many jobs of a real one."""
    from servers import portable

    with portable(slow_commits) as flags:
        yield flags


def rows_of(output, kind="embeddings"):
    """All rows of a dataset, sorted by shard and row."""
    tables = [pq.ParquetFile(path).read() for path in sorted((output / kind).glob("*.parquet"))]
    rows = [row for table in tables for row in table.to_pylist()]
    return sorted(rows, key=lambda row: (row["shard"], -1 if row["row"] is None else row["row"]))


def files_of(output):
    """Every committed part: relative path → bytes."""
    kinds = ("embeddings", "labels", "captions", "rejects")
    paths = [path for kind in kinds for path in (output / kind).rglob("*.parquet")]
    return {str(path.relative_to(output)): path.read_bytes() for path in paths}


@pytest.fixture
def listed(tmp_path):
    """A listing's folder, and things outside of it that a hostile listing would like to read."""
    folder = tmp_path / "listed"
    (folder / "sub").mkdir(parents=True)
    (folder / "a.jpg").write_bytes(b"inside")
    (tmp_path / "listed-too").mkdir()
    for place in (tmp_path / "secret.jpg", tmp_path / "listed-too" / "secret.jpg"):
        place.write_bytes(b"secret")
    (folder / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    (folder / "inner.jpg").symlink_to(folder / "a.jpg")
    (folder / "up").symlink_to(tmp_path)
    os.mkfifo(folder / "pipe.jpg")
    return folder
