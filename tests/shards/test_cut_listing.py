"""A listing is cut into units with a fixed number of rows, so that appending changes no earlier unit."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import files_of, rows_of
from reading import read

from clip_transforms.parts.manifest import read_run
from clip_transforms.shards import cut_listing
from clip_transforms.shards.inventory import PlanError, take_inventory
from clip_transforms.shards.unit import ReaderOptions


@pytest.fixture
def small_units(monkeypatch):
    monkeypatch.setattr(cut_listing, "ROWS_PER_UNIT", 10)


def captions(count):
    return "caption\n" + "".join(f"picture number {i}\n" for i in range(count))


def stamps(path):
    return {unit.part: unit.stamp for unit in take_inventory([str(path)], ReaderOptions()).units}


@pytest.mark.parametrize("count, sizes", [(0, [0]), (9, [9]), (10, [10]), (11, [10, 1]), (30, [10, 10, 10])])
def test_units_have_a_fixed_number_of_rows_in_file_order(count, sizes, small_units, tmp_path, monkeypatch):
    monkeypatch.setattr(cut_listing, "_BYTES_PER_GROUP", 150)  # some row groups a unit
    (tmp_path / "l.csv").write_text(captions(count))
    units = take_inventory([str(tmp_path / "l.csv")], ReaderOptions()).units
    assert [unit.first_row for unit in units] == [10 * i for i in range(len(sizes))]
    rows, _, _ = read(tmp_path / "l.csv", tmp_path)
    assert [row["row"] for row in rows] == list(range(count))
    assert [row["caption"] for row in rows] == [f"picture number {i}" for i in range(count)]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_appending_leaves_the_earlier_units_alone(kind, small_units, tmp_path):
    def write(count, start="picture"):
        texts = [f"{start} number {i}" for i in range(count)]
        if kind == "parquet":
            pq.write_table(pa.table({"caption": texts}), tmp_path / "l.parquet", row_group_size=count // 2 + 1)
        elif kind == "csv":
            (tmp_path / "l.csv").write_text("\n".join(["caption", *texts]))
        else:
            (tmp_path / "l.jsonl").write_text("\n".join(json.dumps({"caption": text}) for text in texts))

    write(25)
    before = stamps(tmp_path / f"l.{kind}")
    write(47)
    after = stamps(tmp_path / f"l.{kind}")
    assert len(before) == 3 and len(after) == 5 and set(before) < set(after)
    assert [before[part] == after[part] for part in before] == [True, True, False]
    write(47, "photo")
    assert not set(after.values()) & set(stamps(tmp_path / f"l.{kind}").values())


def test_a_run_over_an_appended_listing_embeds_only_its_new_rows(small_units, tmp_path, embed):
    (tmp_path / "l.csv").write_text(captions(20))
    out = tmp_path / "out"
    embed(tmp_path / "l.csv", output=out)
    before = files_of(out)
    (tmp_path / "l.csv").write_text(captions(33))
    embed(tmp_path / "l.csv", output=out)
    after = files_of(out)
    assert {name: after[name] for name in before} == before and len(after) == 2 * len(before)
    run = read_run(str(out))
    assert (run["units"]["committed"], run["units"]["skipped"]) == (2, 2)
    assert [row["caption"] for row in rows_of(out)] == [f"picture number {i}" for i in range(33)]
    (tmp_path / "l.csv").write_text(captions(12))  # rows that are gone go from the dataset too
    embed(tmp_path / "l.csv", output=out)
    assert len(rows_of(out)) == 12


def test_the_side_file_holds_only_rows_of_pending_units(small_units, tmp_path):
    (tmp_path / "l.csv").write_text(captions(25))
    plan = take_inventory([str(tmp_path / "l.csv")], ReaderOptions())
    (rows,) = plan.side_files.values()
    tables = list(rows.tables({plan.units[1].part}))
    assert [table.num_rows for table in tables] == [0, 10, 0]


def test_a_listing_that_changes_while_it_is_planned_is_refused(small_units, tmp_path):
    (tmp_path / "l.csv").write_text(captions(25))
    plan = take_inventory([str(tmp_path / "l.csv")], ReaderOptions())
    (tmp_path / "l.csv").write_text(captions(24) + "something else\n")
    (rows,) = plan.side_files.values()
    with pytest.raises(PlanError, match="was changed while the run was planned"):
        list(rows.tables({unit.part for unit in plan.units}))
