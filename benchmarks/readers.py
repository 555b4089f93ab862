"""Measure the cost of reading each format, without decoding and without a model: `python -m benchmarks.readers`.

The same pairs are written as a tar, a gzipped tar, a folder, a Parquet file and a CSV that names pictures. They are
read as a run reads them, from planned units to record batches. The result is a ratio to reading the bare bytes of the
same files, all in the page cache; for a gzipped tar also a ratio to unpacking it.
"""

from __future__ import annotations

import argparse
import gzip
import statistics
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow.parquet as pq

from benchmarks.inputs import photographs, samples, write_folder, write_listing, write_parquet, write_tar
from benchmarks.machine import interleaved, median_ratio, print_facts
from clip_transforms.shards.inventory import Inventory, take_inventory
from clip_transforms.shards.read_unit import read_unit
from clip_transforms.shards.unit import ReaderOptions

BATCH, ROW_GROUP, BLOCK = 32, 1_000, 1 << 20


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=4_000, help="number of samples in each format (%(default)s)")
    parser.add_argument("--size", default="256x256", help="size of the pictures in pixels (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="number of interleaved rounds (%(default)s)")
    options = parser.parse_args(argv)
    print_facts()
    images = photographs(32, *map(int, options.size.split("x")))
    for name, write in FORMATS.items():
        with tempfile.TemporaryDirectory() as folder:
            source = write(Path(folder) / "input", options.samples, images)
            print(f"{name}: {measure(source, Path(folder), options.samples, options.rounds)}", flush=True)


def _tar(path: Path, count: int, images: Sequence[bytes]) -> Path:
    return write_tar(path.with_suffix(".tar"), samples(count, images))


def _tar_gz(path: Path, count: int, images: Sequence[bytes]) -> Path:
    return write_tar(path.with_suffix(".tar.gz"), samples(count, images))


def _folder(path: Path, count: int, images: Sequence[bytes]) -> Path:
    return write_folder(path, samples(count, images))


def _parquet(path: Path, count: int, images: Sequence[bytes]) -> Path:
    return write_parquet(path.with_suffix(".parquet"), samples(count, images), ROW_GROUP)


def _listing(path: Path, count: int, images: Sequence[bytes]) -> Path:
    return write_listing(path, samples(count, images))


FORMATS: dict[str, Callable[[Path, int, Sequence[bytes]], Path]] = {
    "tar": _tar,
    "tar.gz": _tar_gz,
    "folder": _folder,
    "Parquet": _parquet,
    "listing (CSV)": _listing,
}


def measure(source: Path, plan_folder: Path, count: int, rounds: int) -> str:
    """Return the rates of one format as a line."""
    inventory = take_inventory([str(source)], ReaderOptions())
    write_side_files(inventory, plan_folder)
    top = source.parent if source.suffix == ".csv" else source  # a listing's pictures lie beside it
    files = sorted(path for path in top.rglob("*") if path.is_file()) if top.is_dir() else [top]
    megabytes = sum(file.stat().st_size for file in files) / 1e6
    unpack = {"unpacked": lambda: _read_bare(files, gzip.open)} if source.suffix == ".gz" else {}
    seconds = interleaved(
        rounds, ours=lambda: read(inventory, plan_folder, count), bare=lambda: _read_bare(files, open), **unpack
    )
    ours = statistics.median(seconds["ours"])
    line = (
        f"{count / ours:,.0f} samples/s, {megabytes / ours:,.0f} MB/s; bare bytes "
        f"{megabytes / statistics.median(seconds['bare']):,.0f} MB/s, "
        f"{median_ratio(seconds['ours'], seconds['bare']):.2f} times their seconds"
    )
    if unpack:
        line += f", {median_ratio(seconds['ours'], seconds['unpacked']):.2f} times those of unpacking"
    return line


def read(inventory: Inventory, plan_folder: Path, count: int) -> None:
    """Read all batches of all units.

    Raises:
        RuntimeError: if a sample is missing; the rate would be wrong then.
    """
    options, found = ReaderOptions(), 0
    for unit in inventory.units:
        for batch in read_unit(unit, options, BATCH, Counter(), str(plan_folder)):
            found += batch.num_rows - batch.column("image").null_count
    if found != count:
        raise RuntimeError(f"{found:,} of {count:,} pictures were read")


def write_side_files(inventory: Inventory, folder: Path) -> None:
    """Write the side files of folders and listings, as a run does beside its plan."""
    for name, side_file in inventory.side_files.items():
        with pq.ParquetWriter(folder / name, side_file.schema) as writer:
            for table in side_file.tables({unit.part for unit in inventory.units}):
                writer.write_table(table)


def _read_bare(files: Sequence[Path], opened: Callable) -> None:
    for path in files:
        with opened(path, "rb") as file:
            while file.read(BLOCK):
                pass


if __name__ == "__main__":
    main()
