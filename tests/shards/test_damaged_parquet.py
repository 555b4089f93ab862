"""Damaged Parquet: all readable rows are read, and one shard error names the others."""

import base64

import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.parquet.encryption as pe
import pytest
from conftest import files_of, make_folder, make_parquet, make_tar, picture, rows_of
from reading import read

from clip_transforms.shards.inventory import PlanError, take_inventory
from clip_transforms.shards.unit import ReaderOptions
from schemas.samples import Column


def break_footer(path):
    data = open(path, "rb").read()
    open(path, "wb").write(data[:-30])
    return path


def break_page(path, group, column="image", kind="data"):
    """Overwrite the header of a column's page in one row group."""
    chunks = pq.read_metadata(path).row_group(group)
    chunk = next(c for i in range(chunks.num_columns) if (c := chunks.column(i)).path_in_schema.startswith(column))
    place = chunk.data_page_offset if kind == "data" else chunk.dictionary_page_offset or chunk.data_page_offset
    data = bytearray(open(path, "rb").read())
    data[place : place + 8] = b"\xff" * 8
    open(path, "wb").write(data)
    return path


def replace(path, old, new):
    data = open(path, "rb").read()
    open(path, "wb").write(data.replace(old, new))
    return path


def retype(path, **columns):
    table = pq.read_table(path)
    for name, values in columns.items():
        table = table.set_column(table.schema.get_field_index(name), name, values)
    pq.write_table(table, path)
    return path


class Keys(pe.KmsClient):
    def __init__(self, _):
        super().__init__()

    def wrap_key(self, key, master):
        return base64.b64encode(master.encode() + key)

    def unwrap_key(self, wrapped, master):
        return base64.b64decode(wrapped)[len(master) :]


def encrypt(path, plain_footer):
    table = pq.read_table(path)
    settings = pe.EncryptionConfiguration(
        footer_key="f", column_keys={"c": table.column_names}, plaintext_footer=plain_footer
    )
    properties = pe.CryptoFactory(Keys).file_encryption_properties(pe.KmsConnectionConfig(), settings)
    with pq.ParquetWriter(path, table.schema, encryption_properties=properties) as writer:
        writer.write_table(table)
    return path


UNREADABLE = {
    "broken footer": break_footer,
    "empty file": lambda path: open(path, "wb").close(),
    "text": lambda path: open(path, "w").write("PAR1 no"),
    "names that are no text": lambda path: replace(path, b"image", b"im\xffge"),  # found by the fuzzer
    "encrypted": lambda path: encrypt(path, False),
    "encrypted columns": lambda path: encrypt(path, True),
    "captions are numbers": lambda path: retype(path, caption=pa.array([{"a": 1}] * 4)),
    "images are numbers": lambda path: retype(path, image=pa.array([1, 2, 3, 4])),
    "images are texts": lambda path: retype(path, image=pa.array(["a.jpg"] * 4)),
}


def three_files(folder, name):
    """Write three files of four rows with the middle one damaged; return the options that make the damage matter."""
    folder.mkdir()
    for i in range(3):
        make_parquet(folder / f"{i}.parquet", 4, first=4 * i)
    UNREADABLE[name](folder / "1.parquet")
    return ReaderOptions(caption_column="caption") if name == "captions are numbers" else ReaderOptions()


@pytest.mark.parametrize("name", UNREADABLE)
def test_a_file_that_cannot_be_read_is_one_reject_among_others(name, tmp_path):
    options = three_files(tmp_path / "in", name)
    rows, _, errors = read(tmp_path / "in", tmp_path, options)
    assert [row["key"] for row in rows] == [f"{i:06d}" for i in (0, 1, 2, 3, 8, 9, 10, 11)]
    assert len(errors) == 1 and errors[0][0] == "unreadable"
    if name != "encrypted columns":  # its footer reads like any other
        last = take_inventory([str(tmp_path / "in")], options).detection[-1]
        assert last.startswith(f"warning: {tmp_path}/in/1.parquet will be a reject")


def test_a_file_that_can_be_read_the_next_day_is_read_then(tmp_path, embed):
    three_files(tmp_path / "in", "broken footer")
    out = tmp_path / "out"
    embed(tmp_path / "in", output=out, code=3)
    (reject,) = rows_of(out, "rejects")
    assert (reject["modality"], reject["stage"], reject["reason"]) == ("shard", "read", "unreadable")
    assert reject["shard"] == f"{tmp_path}/in/1.parquet" and len(rows_of(out)) == 8
    before = files_of(out)
    make_parquet(tmp_path / "in" / "1.parquet", 4, first=4)
    embed(tmp_path / "in", output=out)
    assert len(rows_of(out)) == 12 and not rows_of(out, "rejects")
    after = files_of(out)
    kept = {part: data for part, data in before.items() if "/0-" in part or "/2-" in part}
    assert len(kept) == 4 and after | kept == after
    assert len(after) == 6  # the part of the reject went away


@pytest.mark.parametrize("name", sorted(set(UNREADABLE) - {"encrypted columns", "images are texts"}))
def test_an_unreadable_file_that_is_the_only_input_is_refused_before_the_run_starts(name, tmp_path):
    path = make_parquet(tmp_path / "a.parquet", 4)
    UNREADABLE[name](path)
    options = ReaderOptions(caption_column="caption") if name == "captions are numbers" else ReaderOptions()
    if name == "images are numbers":  # the captions are left, and say so
        assert take_inventory([path], options).formats == {"listing"}
        return
    with pytest.raises(PlanError, match="a.parquet"):
        take_inventory([path, path], options)


def test_a_broken_file_named_beside_good_inputs_of_another_kind_is_a_reject(tmp_path):
    broken = break_footer(make_parquet(tmp_path / "a.parquet", 4))
    tar = make_tar(tmp_path / "b.tar", 2)
    plan = take_inventory([broken, tar], ReaderOptions())
    assert {unit.format for unit in plan.units} == {"parquet", "webdataset"}
    assert plan.detection[-1].startswith(f"warning: {broken} will be a reject")


def test_a_flag_that_no_parquet_file_can_follow_is_wrong_whatever_else_there_is(tmp_path):
    inputs = [make_parquet(tmp_path / "a.parquet", 4), make_tar(tmp_path / "b.tar", 2)]
    with pytest.raises(PlanError, match="--key_column nope is not a column"):
        take_inventory(inputs, ReaderOptions(key_column="nope"))


def test_a_broken_parquet_file_beside_pictures_is_reported_and_hides_none_of_them(tmp_path):
    make_folder(tmp_path, 3)
    (tmp_path / "metadata.parquet").write_text("no")
    found = take_inventory([str(tmp_path)], ReaderOptions())
    assert found.detection == [f"{tmp_path}: a folder of 3 pictures; not read: 1 Parquet that cannot be read"]


@pytest.mark.parametrize("batch_size", [1, 2, 3, 4, 100])
@pytest.mark.parametrize(
    "group, column, lost", [(0, "image", range(0, 5)), (1, "caption", range(5, 10)), (2, "key", range(10, 12))]
)
def test_a_broken_page_costs_its_row_group_alone_whatever_the_batch(group, column, lost, batch_size, tmp_path):
    path = break_page(make_parquet(tmp_path / "a.parquet", 12, row_group_size=5), group, column)
    rows, _, errors = read(path, tmp_path, batch_size=batch_size)
    assert [row["row"] for row in rows] == [i for i in range(12) if i not in lost]
    for row in rows:
        assert (row["key"], row["image"]) == (f"{row['row']:06d}", picture(row["row"]))
    (error,) = errors
    assert error[0] == "unreadable" and f"rows {lost[0]} to {lost[-1]} cannot be read" in error[1]


@pytest.mark.parametrize("batch_size", [1, 7, 64, 1000])
def test_pages_before_the_broken_one_are_read(batch_size, tmp_path):
    path = tmp_path / "a.parquet"
    images = [b"%04d" % i + bytes(1000) for i in range(400)]
    pq.write_table(
        pa.table({"image": images}),
        path,
        data_page_size=20_000,
        use_dictionary=False,
        compression="none",
        write_batch_size=10,
        row_group_size=200,
    )
    data = bytearray(path.read_bytes())
    place = data.index(b"0100")
    header = data.rindex(b"0099", 0, place) + 1004  # where the page of the next value begins
    data[header : header + 8] = b"\xff" * 8
    path.write_bytes(data)
    rows, _, errors = read(path, tmp_path, batch_size=batch_size)
    found = [row["row"] for row in rows]
    stop = next(i for i, row in enumerate(found) if row != i)
    assert 80 <= stop <= 120 and found == [*range(stop), *range(200, 400)]
    assert all(row["image"] == images[row["row"]] for row in rows)
    assert len(errors) == 1 and f"rows {stop} to 199" in errors[0][1]


def test_a_flipped_bit_is_found_where_the_writer_left_checksums(tmp_path):
    path = tmp_path / "a.parquet"
    table = pa.table({"image": [picture(i) for i in range(6)]})
    pq.write_table(
        table,
        path,
        row_group_size=3,
        compression="none",
        use_dictionary=False,
        write_page_checksum=True,
        write_statistics=False,
    )
    data = bytearray(path.read_bytes())
    data[data.index(picture(1)) + 200] ^= 1
    path.write_bytes(data)
    rows, _, errors = read(path, tmp_path)
    assert [row["row"] for row in rows] == [3, 4, 5] and len(errors) == 1


def test_a_run_over_a_broken_page_accounts_for_every_row_that_was_read(tmp_path, embed):
    path = break_page(make_parquet(tmp_path / "a.parquet", 12, row_group_size=4), 1)
    out = tmp_path / "out"
    embed(path, output=out, code=3)
    assert [row["row"] for row in rows_of(out)] == [0, 1, 2, 3, 8, 9, 10, 11]
    (reject,) = rows_of(out, "rejects")
    assert reject["modality"] == "shard" and "rows 4 to 7" in reject["message"]
    embed(path, output=out, flags=["--allow_damaged_shards"])


def test_a_column_of_ones_own_may_be_missing_in_some_files_but_not_in_all(tmp_path):
    make_parquet(tmp_path / "a.parquet", 2)
    table = pq.read_table(make_parquet(tmp_path / "b.parquet", 2, first=2))
    pq.write_table(table.append_column("licence", pa.array(["x", "y"])), tmp_path / "b.parquet")
    rows, notes, _ = read(tmp_path, tmp_path, ReaderOptions(columns=(Column("licence", "licence"),)))
    assert [row["licence"] for row in rows] == [None, None, "x", "y"] and not notes
    with pytest.raises(PlanError, match="--columns license is not a column"):
        take_inventory([str(tmp_path)], ReaderOptions(columns=(Column("license", "license"),)))


def test_a_file_that_became_shorter_after_planning_is_no_crash(tmp_path):
    from clip_transforms.shards.read_unit import read_unit
    from clip_transforms.shards.unit import ShardError

    unit = take_inventory([make_parquet(tmp_path / "a.parquet", 12, row_group_size=5)], ReaderOptions()).units[0]
    make_parquet(tmp_path / "a.parquet", 2)
    with pytest.raises(ShardError, match="fewer rows than planned"):
        list(read_unit(unit, ReaderOptions(), 3, None, ""))


def test_a_huge_value_is_a_reject_of_its_own(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"image": [picture(0), b"x" * 5000, picture(2), None]}), path)
    rows, _, _ = read(path, tmp_path, ReaderOptions(max_image_bytes=4999))
    assert [row["image"] for row in rows] == [picture(0), None, picture(2), None]
    assert [row["image_reject"] and row["image_reject"]["reason"] for row in rows] == [
        None,
        "image too large",
        None,
        None,
    ]
