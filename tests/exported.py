"""A dataset of every kind of shard to export, and a source without pictures."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import make_folder, make_parquet, pair, picture, rows_of, write_tar

from clip_transforms import ClipSpec, Taxonomy, embed_shards
from clip_transforms.exports.plan import LAYOUTS

SAME_BYTES = [name for name in LAYOUTS if name != "lance"]  # Lance names its files at random


@pytest.fixture(name="made", scope="module")
def made_dataset(tmp_path_factory, tiny_checkpoint):
    """A dataset of tars, a Parquet file, a folder and a listing, with labels, and a selection of its rows."""
    folder = tmp_path_factory.mktemp("made")
    for name, first in (("a", 0), ("b", 9)):
        members = [m for i in range(first, first + 9) for m in pair(f"{i:032x}", i, json=json.dumps({"n": i}).encode())]
        write_tar(folder / f"{name}.tar", members)
    make_parquet(folder / "p.parquet", 12, first=20)
    make_folder(folder / "photos", 7, first=40)
    (folder / "l").mkdir()
    (folder / "l" / "l.csv").write_text("image,caption\nx.jpg,one\n,two\nx.jpg,\n")
    (folder / "l" / "x.jpg").write_bytes(picture(60))
    inputs = [folder / "*.tar", folder / "p.parquet", folder / "photos", folder / "l" / "l.csv"]
    (folder / "colors.txt").write_text("red\nblue\n")
    model = ClipSpec(tiny_checkpoint, precision="fp32")
    embed_shards([*map(str, inputs)], folder / "out", model, Taxonomy.load(str(folder / "colors.txt")))
    rows = [row for row in rows_of(folder / "out") if row["row"] % 3 != 1]
    pq.write_table(
        pa.table({"shard": [r["shard"] for r in rows], "row": [r["row"] for r in rows]}), folder / "s.parquet"
    )
    return folder


def captions_alone(path):
    return [write_tar(path / "a.tar", [(f"{i}.txt", f"number {i}".encode()) for i in range(3)])]
