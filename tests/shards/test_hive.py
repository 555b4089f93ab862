"""Folders that are named after values, as Hive and Spark write them."""

import contextlib
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import make_folder, make_parquet, make_tar, pair, picture, write_tar
from reading import read

from clip_transforms.shards.hive import folder_values
from clip_transforms.shards.inventory import take_inventory
from clip_transforms.shards.unit import PlanError, ReaderOptions
from schemas.samples import Column

SPLIT = ReaderOptions(columns=(Column("split", "split"), Column("language", "lang")))


def make_listing(path, count, first=0):
    """A listing of captions."""
    path.write_text("caption\n" + "".join(f"picture number {i}\n" for i in range(first, first + count)))
    return str(path)


def make_jsonl(path, count, first=0):
    """A listing of captions in JSON."""
    path.write_text("".join(f'{{"caption": "picture number {i}"}}\n' for i in range(first, first + count)))
    return str(path)


LAYOUTS = {
    "a.parquet": make_parquet,
    "a.tar": make_tar,
    "": make_folder,
    "a.csv": make_listing,
    "a.jsonl": make_jsonl,
}


def partitioned(root, make, name):
    for place, (split, lang) in enumerate([("test", "en"), ("train", "de"), ("train", "zh%2FTW")]):
        folder = root / f"split={split}" / f"lang={lang}"
        folder.mkdir(parents=True)
        make(folder / name if name else folder, 2, first=2 * place)
    return root


@pytest.mark.parametrize("name", LAYOUTS)
def test_folders_give_columns_in_every_layout(name, tmp_path):
    root = partitioned(tmp_path / "data", LAYOUTS[name], name)
    expected = [("test", "en")] * 2 + [("train", "de")] * 2 + [("train", "zh/TW")] * 2
    rows, notes, errors = read(root, tmp_path, SPLIT)
    assert not notes and not errors
    assert [(row["split"], row["language"]) for row in rows] == expected
    assert [row["caption"] for row in rows] == [f"picture number {i}" for i in range(6)]
    # The folder that an input names counts too, as it does for a glob.
    rows, _, _ = read(root / "split=train" / "lang=de", tmp_path, SPLIT)
    assert [(row["split"], row["language"]) for row in rows] == [("train", "de")] * 2
    with (
        pytest.raises(PlanError, match="--columns year is not a column")
        if name in ("a.parquet", "a.csv")
        else contextlib.nullcontext()
    ):
        take_inventory([str(root)], ReaderOptions(columns=(Column("year", "year"),)))


def test_a_folders_value_is_cast_like_any_other(tmp_path):
    for year in ("2024", "x", "__HIVE_DEFAULT_PARTITION__"):
        (tmp_path / f"year={year}").mkdir()
        make_parquet(tmp_path / f"year={year}" / "a.parquet", 1)
        make_tar(tmp_path / f"year={year}" / "b.tar", 1)
    rows, notes, _ = read(tmp_path, tmp_path, ReaderOptions(columns=(Column("year", "year", "int16"),)))
    assert sorted((row["year"] for row in rows), key=str) == [2024, 2024, None, None, None, None]
    assert notes == {"values of --columns year:int16 that could not be cast": 2}


def test_a_column_goes_before_a_folders_name_and_that_is_said_once(tmp_path):
    for split in ("train", "test"):
        (tmp_path / f"split={split}").mkdir()
        for name in ("a", "b"):
            table = pa.table({"image": [picture(0), picture(1)], "split": ["mine", None]})
            pq.write_table(table, tmp_path / f"split={split}" / f"{name}.parquet")
    options = ReaderOptions(columns=(Column("split", "split"),))
    rows, notes, _ = read(tmp_path, tmp_path, options)
    assert [row["split"] for row in rows] == ["mine", None] * 4 and not notes
    assert take_inventory([str(tmp_path)], options).detection == [
        f"{tmp_path}: 4 Parquet shards with images",
        "note: split is a column, and in the names of folders too (split=…); the column is taken",
    ]
    assert len(take_inventory([str(tmp_path)], ReaderOptions()).detection) == 1


def test_a_value_in_json_goes_before_a_folders_name(tmp_path):
    folder = tmp_path / "split=train"
    folder.mkdir()
    write_tar(folder / "a.tar", [*pair("0", 0, json=json.dumps({"split": "mine"}).encode()), *pair("1", 1)])
    options = ReaderOptions(columns=(Column("split", "split"),))
    assert [row["split"] for row in read(tmp_path, tmp_path, options)[0]] == ["mine", "train"]
    assert take_inventory([str(tmp_path)], options).detection[1] == (
        "note: split is taken from the names of folders (split=…) unless a sample has a split of its own"
    )


@pytest.mark.parametrize(
    ("uri", "values"),
    [
        ("/d/a=1/b=2/x.tar", {"a": "1", "b": "2"}),
        ("/d/a=1/a=2/x.tar", {"a": "2"}),
        ("s3://b/a=x%20y/x=5.tar", {"a": "x y"}),
        ("/d/=1/a=/a b=c=d/x.tar", {"a": "", "a b": "c=d"}),
        ("/d/a=__HIVE_DEFAULT_PARTITION__/x", {"a": None}),
        ("/d/x.tar", {}),
    ],
)
def test_the_values_of_a_path(uri, values):
    assert folder_values(uri) == values
