"""Mutated pictures and containers cause no crash, no hang and no output on the terminal, and memory stays bounded.

All cases of a kind run in a process of their own, so that a crash in a C library is seen and ends no other test. The
kind and the number reproduce a case: `python tests/test_fuzz.py pictures 17` prints the outcome of number 17.
"""

import gzip
import io
import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import ROOT, make_parquet, make_tar, pair, picture, write_tar
from forked import run
from PIL import Image

SECONDS_A_CASE = 30
# Numbers with a meaning in headers: the largest and the smallest, signed and unsigned, and sizes of pages and pictures.
NUMBERS = [0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0x10000, 0xFFFFFF]


def pictures():
    """Return one encoded picture of every kind that has its own path through a decoder."""
    image = Image.open(io.BytesIO(picture(1, size=(70, 50))))
    more = Image.open(io.BytesIO(picture(2, size=(70, 50))))

    def encode(format_, source=image, **options):
        buffer = io.BytesIO()
        source.save(buffer, format_, **options)
        return buffer.getvalue()

    exif = Image.Exif()
    exif[0x0112] = 6
    return {
        "jpeg": encode("JPEG", exif=exif),
        "jpeg progressive": encode("JPEG", progressive=True, subsampling=0),
        "jpeg cmyk": encode("JPEG", image.convert("CMYK")),
        "jpeg grey": encode("JPEG", image.convert("L")),
        "png": encode("PNG"),
        "png palette": encode("PNG", image.convert("P"), transparency=3),
        "png 16 bit": encode("PNG", image.convert("I;16")),
        "png animated": encode("PNG", save_all=True, append_images=[more]),
        "webp": encode("WEBP"),
        "webp lossless": encode("WEBP", image.convert("RGBA"), lossless=True),
        "webp animated": encode("WEBP", save_all=True, append_images=[more]),
        "gif": encode("GIF", save_all=True, append_images=[more]),
        "tiff": encode("TIFF"),
        "tiff lzw": encode("TIFF", compression="tiff_lzw"),
        "tiff deflate": encode("TIFF", compression="tiff_adobe_deflate"),
        "tiff jpeg": encode("TIFF", compression="jpeg"),
        "tiff group4": encode("TIFF", image.convert("1"), compression="group4"),
        "bmp": encode("BMP"),
        "avif": encode("AVIF"),
    }


def containers(folder):
    """File name → bytes, of every kind of container."""
    members = [m for i in range(4) for m in pair(f"{i}", i, json=b'{"caption": "x", "n": 1}')]
    plain = Path(write_tar(folder / "t", members)).read_bytes()
    long = Path(write_tar(folder / "t", [("d/" * 90 + f"{i}.jpg", b"12") for i in range(3)])).read_bytes()
    parquet = Path(make_parquet(folder / "p", 12)).read_bytes()
    table = pa.table({"image": [{"bytes": b"1", "path": "a"}] * 9, "caption": ["a", "a", None] * 3, "n": range(9)})
    sinks = {}
    for name, options in {
        "plain": dict(compression="none", use_dictionary=False),
        "zstd": dict(compression="zstd", data_page_version="2.0"),
        "small": dict(row_group_size=2, compression="gzip"),
    }.items():
        sink = io.BytesIO()
        pq.write_table(table, sink, **options)
        sinks[f"{name}.parquet"] = sink.getvalue()
    listing = io.BytesIO()
    pq.write_table(pa.table({"caption": ["a", "b", "c"] * 5, "url": [None] * 15}), listing, row_group_size=5)
    return {
        "a.tar": plain,
        "b.tar": long,
        "c.tar.gz": gzip.compress(plain, 1),
        "a.parquet": parquet,
        **sinks,
        "listing.parquet": listing.getvalue(),
        "l.csv": b'uri,caption,n\na.jpg,"a, ""cat""",1\n,"two\nlines",2\nb.jpg,,3\n',
        "l.tsv": b'uri\tcaption\na.jpg\t"a cat"\n\ta dog\n',
        "l.jsonl": b'{"uri": "a.jpg", "caption": "a"}\n{"caption": null, "n": [1, {"a": 2}]}\n',
    }


def mutate(data, rng):
    """Return the data with some bytes changed, removed, inserted or moved."""
    data = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 3, 8, 30])):
        place = rng.randrange(len(data) + 1) if rng.random() < 0.5 else rng.randrange(min(len(data), 600) + 1)
        kind = rng.randrange(7)
        if kind == 0 and place < len(data):
            data[place] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[place : place + 1] = rng.randbytes(1)
        elif kind == 2:
            size = rng.choice([1, 2, 4, 8])
            number = rng.choice(NUMBERS) & ((1 << 8 * size) - 1)
            data[place : place + size] = number.to_bytes(size, rng.choice(["big", "little"]))
        elif kind == 3:
            del data[place : place + rng.choice([1, 4, 100, 1 << 30])]
        elif kind == 4:
            data[place:place] = rng.randbytes(rng.choice([1, 4, 50]))
        elif kind == 5:
            start = rng.randrange(len(data) + 1)
            data[place:place] = data[start : start + rng.choice([4, 50, 512])]
        else:
            data[place : place + 20] = bytes(20) if rng.random() < 0.5 else b"\xff" * 20
    return bytes(data)


def picture_case(number, seeds, _):
    """What became of one mutated picture."""
    from clip_transforms.clip.decoders import REASONS, ImageError
    from clip_transforms.clip.preprocess import Preprocessing, decode

    rng = random.Random(f"picture {number}")
    data = mutate(seeds[rng.choice(sorted(seeds))], rng)
    try:
        decoded = decode(data, Preprocessing(32))
    except ImageError as error:
        assert error.reason in REASONS
        str(error).encode()
        return error.reason
    assert decoded.pixels.shape == (3, 32, 32)
    return "decoded"


def container_case(number, seeds, folder):
    """Return the outcome of reading one mutated container beside an intact one."""
    from reading import write_side_files

    from clip_transforms.shards.inventory import PlanError, take_inventory
    from clip_transforms.shards.read_unit import read_unit
    from clip_transforms.shards.unit import ReaderOptions, ShardError

    rng = random.Random(f"container {number}")
    name = rng.choice(sorted(seeds))
    path = folder / name
    path.write_bytes(mutate(seeds[name], rng))
    options, outcomes = ReaderOptions(max_image_bytes=1 << 20), set()
    try:
        plan = take_inventory([str(path), str(folder / "whole.tar")], options)
        write_side_files(plan, folder)
    except PlanError as error:
        assert "\n" not in str(error).strip() or name.endswith(".parquet")
        return "refused"
    for unit in plan.units:
        rows = []
        try:
            for batch in read_unit(unit, options, 5, Counter(), str(folder)):
                batch.validate(full=True)
                rows += batch.column("row").to_pylist()
            outcomes.add("read")
        except ShardError as error:
            str(error).encode(errors="surrogateescape")
            outcomes.add("shard reject")
        assert rows == sorted(set(rows))
    path.unlink()
    return " and ".join(sorted(outcomes))


CASES = {"pictures": picture_case, "containers": container_case}


def main(kind, numbers):
    """Run cases and print their outcomes as JSON; any other output is a fault."""
    sys.path[:0] = [f"{ROOT}/tests", f"{ROOT}/tests/shards"]
    from clip_transforms.clip.decoders import set_up_decoders

    set_up_decoders()  # as the workers do
    outcomes, slowest = Counter(), (0.0, -1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        seeds = pictures() if kind == "pictures" else containers(folder)
        make_tar(folder / "whole.tar", 1)
        CASES[kind](-1, seeds, folder)  # imports what is needed
        before = peak()
        for number in numbers:
            signal.alarm(SECONDS_A_CASE)  # by default, the signal ends the process
            start = time.perf_counter()
            try:
                outcomes[CASES[kind](number, seeds, folder)] += 1
            except BaseException as error:
                raise AssertionError(f"number {number} of {kind}") from error
            slowest = max(slowest, (time.perf_counter() - start, number))
        signal.alarm(0)
    print(json.dumps({"outcomes": outcomes, "megabytes": (peak() - before) >> 10, "slowest": slowest}))


def peak():
    """The most kilobytes that this process ever held."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "kind, count",
    [
        ("pictures", 200),
        ("containers", 50),
        pytest.param("pictures", 5_000, marks=pytest.mark.slow),  # a minute
        pytest.param("containers", 1_000, marks=pytest.mark.slow),  # a minute
    ],
)
def test_mutated_files_end_in_pixels_rows_or_rejects(kind, count):
    code = f"import test_fuzz; test_fuzz.main({kind!r}, range({count}))"
    done = run(
        "-c",
        code,
        cwd=f"{ROOT}/tests",
        env={**os.environ, "PYTHONPATH": ROOT},
        timeout=580,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    (line,) = done.stdout.splitlines()
    found = json.loads(line)
    assert sum(found["outcomes"].values()) == count and len(found["outcomes"]) > 2
    assert found["megabytes"] < 600, found
    print(found)


if __name__ == "__main__":
    main(sys.argv[1], [int(number) for number in sys.argv[2:]])
