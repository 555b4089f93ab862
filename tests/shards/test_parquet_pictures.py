"""Pictures in Parquet files: by path, in nested columns, of many types, and found by their bytes."""

import base64
import json

import count_sources
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import make_parquet, picture, rows_of
from reading import read

from clip_transforms.parts.manifest import read_run
from clip_transforms.shards import parquet_images
from clip_transforms.shards.inventory import take_inventory
from clip_transforms.shards.unit import PlanError, ReaderOptions
from schemas.samples import Column

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
PICTURES = [picture(i) for i in range(4)]
TEXTS = [f"picture number {i}" for i in range(4)]


def write(path, /, **columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return path


def images_of(rows):
    """The image of each row, or the reason of its reject, or None."""
    return [row["image"] or (row["image_reject"] and row["image_reject"]["reason"]) for row in rows]


def refusal(*inputs, **options):
    with pytest.raises(PlanError) as caught:
        take_inventory([str(path) for path in inputs], ReaderOptions(**options))
    return str(caught.value)


def detection(*inputs, **options):
    return take_inventory([str(path) for path in inputs], ReaderOptions(**options)).detection


@pytest.fixture
def with_files(tmp_path):
    """A folder for a Parquet file, with pictures below it and beside it."""
    (tmp_path / "data" / "images").mkdir(parents=True)
    for i, data in enumerate(PICTURES):
        (tmp_path / "data" / "images" / f"{i}.jpg").write_bytes(data)
    (tmp_path / "beside.jpg").write_bytes(picture(9))
    return tmp_path / "data"


PATHS = [f"images/{i}.jpg" for i in range(4)]
STRUCTS = {
    "all by path": (IMAGE, [{"bytes": None, "path": path} for path in PATHS]),
    "half by path": (IMAGE, [{"bytes": None if i % 2 else PICTURES[i], "path": PATHS[i]} for i in range(4)]),
    "null as the type of bytes": (
        pa.struct([("bytes", pa.null()), ("path", pa.string())]),
        [{"bytes": None, "path": path} for path in PATHS],
    ),
    "no bytes": (pa.struct([("path", pa.large_string())]), [{"path": path} for path in PATHS]),
    "path first": (
        pa.struct([("path", pa.string()), ("bytes", pa.large_binary())]),
        [{"path": path, "bytes": None} for path in PATHS],
    ),
    "blanks around a path": (IMAGE, [{"bytes": None, "path": f" {path}\n"} for path in PATHS]),
}


@pytest.mark.parametrize("name", STRUCTS)
@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_a_picture_without_bytes_is_fetched_from_its_path(name, batch_size, with_files, tmp_path):
    type_, values = STRUCTS[name]
    path = write(with_files / "train.parquet", image=pa.array(values, type_), text=TEXTS)
    rows, notes, errors = read(path, tmp_path, batch_size=batch_size)
    assert not notes and not errors
    assert [(row["key"], row["row"], row["image"], row["caption"]) for row in rows] == [
        (str(i), i, PICTURES[i], TEXTS[i]) for i in range(4)
    ]
    assert all(row["image_reject"] is None and row["metadata"] is None for row in rows)


def test_a_path_follows_the_rules_of_a_listing(with_files, tmp_path):
    (with_files / "images" / "link.jpg").symlink_to(tmp_path / "beside.jpg")
    paths = ["images/9.jpg", "../beside.jpg", "/etc/passwd", "images/link.jpg", "https://example.org/a.jpg", ""]
    values = [*({"bytes": None, "path": path} for path in paths), {"bytes": None, "path": None}, None]
    path = write(with_files / "a.parquet", image=pa.array(values, IMAGE))
    refused = ["not allowed"] * 4
    rows, _, _ = read(path, tmp_path)
    assert images_of(rows) == ["not fetched", *refused, None, None, None]
    rows, _, _ = read(path, tmp_path, ReaderOptions(allow_uri=(str(tmp_path),)))
    assert images_of(rows) == ["not fetched", picture(9), "not allowed", picture(9), "not allowed", None, None, None]


def test_a_picture_that_is_fetched_keeps_to_the_limit(with_files, tmp_path):
    (with_files / "images" / "1.jpg").write_bytes(b"x" * 5_000)
    values = [{"bytes": None, "path": path} for path in PATHS[:2]] + [{"bytes": b"y" * 5_000, "path": None}]
    path = write(with_files / "a.parquet", image=pa.array(values, IMAGE))
    rows, _, _ = read(path, tmp_path, ReaderOptions(max_image_bytes=4_999))
    assert images_of(rows) == [PICTURES[0], "image too large", "image too large"]


def test_large_pictures_that_are_fetched_do_not_make_a_large_batch(with_files, tmp_path, monkeypatch):
    monkeypatch.setattr(parquet_images, "MAX_BATCH_BYTES", len(PICTURES[0]) + len(PICTURES[1]))
    type_, values = STRUCTS["half by path"]
    unit = take_inventory([str(write(with_files / "a.parquet", image=pa.array(values, type_)))], ReaderOptions()).units[
        0
    ]
    batches = list(parquet_reader(unit))
    assert [batch.num_rows for batch in batches] == [2, 2]
    assert [row["image"] for batch in batches for row in batch.to_pylist()] == PICTURES


def parquet_reader(unit):
    from collections import Counter

    from clip_transforms.shards.read_unit import read_unit

    return read_unit(unit, ReaderOptions(), 100, Counter(), "")


def test_a_run_over_pictures_by_path_accounts_for_each(with_files, tmp_path, embed):
    (with_files / "images" / "2.jpg").write_bytes(b"no picture")
    values = [
        *STRUCTS["half by path"][1],
        {"bytes": None, "path": "images/7.jpg"},
        None,
        {"bytes": None, "path": PATHS[2]},
    ]
    path = write(with_files / "a.parquet", image=pa.array(values, IMAGE), text=[*TEXTS, "e", "f", "g"])
    embed(path, output=tmp_path / "out", code=3)
    rows = rows_of(tmp_path / "out")
    assert [row["row"] for row in rows if row["image_embedding"]] == [0, 1, 2, 3] and len(rows) == 7
    first, second = rows_of(tmp_path / "out", "rejects")
    assert (first["row"], first["stage"], first["reason"]) == (4, "read", "not fetched")
    assert (second["row"], second["stage"]) == (6, "decode") and second["message"].startswith("images/2.jpg: ")


LONG = [data + bytes(5_000 - len(data)) for data in PICTURES]  # a JPEG may have bytes after its end
NESTED = [
    {"image": {"bytes": data, "path": None}, "caption": text, "n": i}
    for i, (data, text) in enumerate(zip(PICTURES, TEXTS, strict=True))
]
TYPES = {
    "dictionary": pa.array(PICTURES, pa.binary()).dictionary_encode(),
    "large binary": pa.array(PICTURES, pa.large_binary()),
    "binary view": pa.array(PICTURES, pa.binary_view()),
    "list of uint8": pa.array([list(data) for data in PICTURES], pa.list_(pa.uint8())),
    "large list of uint8": pa.array([list(data) for data in PICTURES], pa.large_list(pa.uint8())),
    "list of int8": pa.array([[b - 256 if b > 127 else b for b in data] for data in PICTURES], pa.list_(pa.int8())),
    "struct of a list": pa.array(
        [{"bytes": list(data)} for data in PICTURES], pa.struct([("bytes", pa.list_(pa.uint8()))])
    ),
    "struct of a dictionary": pa.StructArray.from_arrays(
        [pa.array(PICTURES, pa.binary()).dictionary_encode(), pa.nulls(4, pa.string())], ["bytes", "path"]
    ),
}


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("batch_size", [1, 3])
def test_encoded_pictures_may_have_any_type_of_bytes(name, batch_size, tmp_path):
    path = write(tmp_path / "a.parquet", image=TYPES[name], text=pa.array(TEXTS).dictionary_encode(), n=list(range(4)))
    rows, notes, errors = read(path, tmp_path, batch_size=batch_size)
    assert not notes and not errors and images_of(rows) == PICTURES
    assert [(row["caption"], row["metadata"]) for row in rows] == [(TEXTS[i], f'{{"n": {i}}}') for i in range(4)]


@pytest.mark.parametrize("type_", [pa.binary(5_000), pa.list_(pa.uint8(), 5_000)], ids=["binary", "list of uint8"])
def test_pictures_of_one_size(type_, tmp_path):
    is_list = pa.types.is_fixed_size_list(type_)
    pictures = LONG if is_list else [LONG[0], None, *LONG[1:]]  # no reader of ours gets a null list of fixed size back
    values = [list(data) for data in LONG] if is_list else pictures
    path = write(tmp_path / "a.parquet", image=pa.array(values, type_))
    assert images_of(read(path, tmp_path, batch_size=2)[0]) == pictures


def test_null_and_empty_lists_of_bytes(tmp_path):
    path = write(tmp_path / "a.parquet", image=pa.array([None, list(PICTURES[0]), [], None], pa.list_(pa.uint8())))
    rows, _, _ = read(path, tmp_path, batch_size=3)
    assert [row["image"] for row in rows] == [None, PICTURES[0], b"", None]


def test_one_of_several_pictures_is_picked_by_its_index(tmp_path):
    entries = [[{"bytes": data, "path": None}, {"bytes": picture(8), "path": None}] for data in PICTURES[:2]]
    path = write(tmp_path / "a.parquet", images=pa.array([*entries, [], None], pa.list_(IMAGE)), text=TEXTS)
    message = f"the column images lists several pictures a row; choose one: --image_column 'images[0]' ({path})"
    assert refusal(path) == refusal(path, image_column="images") == message
    for index, expected in ((0, PICTURES[:2]), (1, [picture(8)] * 2), (2, [None] * 2)):
        rows, notes, errors = read(path, tmp_path, ReaderOptions(image_column=f"images[{index}]"))
        assert not notes and not errors and images_of(rows) == [*expected, None, None]
        assert [(row["caption"], row["metadata"]) for row in rows] == [(text, None) for text in TEXTS]


def test_one_of_a_list_of_bytes_and_of_lists(tmp_path):
    path = write(tmp_path / "a.parquet", image=pa.array([[data] for data in PICTURES], pa.large_list(pa.binary())))
    assert refusal(path).startswith(
        "the column image lists several pictures a row; choose one: --image_column 'image[0]'"
    )
    assert images_of(read(path, tmp_path, ReaderOptions(image_column="image[0]"))[0]) == PICTURES
    path = write(tmp_path / "a.parquet", frames=pa.array([[list(d)] for d in PICTURES], pa.list_(pa.list_(pa.uint8()))))
    rows, _, _ = read(path, tmp_path, ReaderOptions(image_column="frames[0]"))
    assert images_of(rows) == PICTURES and rows[0]["metadata"] is None


def test_a_path_in_a_list_is_fetched(with_files, tmp_path):
    path = write(with_files / "a.parquet", images=pa.array([[v] for v in STRUCTS["half by path"][1]], pa.list_(IMAGE)))
    assert images_of(read(path, tmp_path, ReaderOptions(image_column="images[0]"))[0]) == PICTURES


def test_pictures_captions_keys_and_columns_inside_a_struct(tmp_path):
    path = write(tmp_path / "a.parquet", sample=NESTED, turns=[[{"say": "x"}, {"say": text}] for text in TEXTS])
    options = ReaderOptions(
        image_column="sample.image",
        caption_column="turns[1].say",
        key_column="sample.n",
        columns=(Column("n", "sample.n", "int8"), Column("said", "sample.caption"), Column("first", "turns[0].say")),
    )
    rows, notes, errors = read(path, tmp_path, options)
    assert not notes and not errors and images_of(rows) == PICTURES
    assert [(r["key"], r["caption"], r["n"], r["said"], r["first"]) for r in rows] == [
        (str(i), TEXTS[i], i, TEXTS[i], "x") for i in range(4)
    ]
    assert json.loads(rows[1]["metadata"]) == {"turns": [{"say": "x"}, {"say": TEXTS[1]}]}
    rows, _, _ = read(path, tmp_path, ReaderOptions(image_column="sample.image", caption_column="sample.caption"))
    assert [row["caption"] for row in rows] == TEXTS


def test_a_name_with_dots_and_brackets_of_its_own_goes_first(tmp_path):
    path = write(tmp_path / "a.parquet", **{"image": PICTURES, "a.b": TEXTS, "a": [{"b": "no"}] * 4, "t[0]": TEXTS})
    for name in ("a.b", "t[0]"):
        rows, _, _ = read(path, tmp_path, ReaderOptions(caption_column=name, columns=(Column("x", name),)))
        assert [(row["caption"], row["x"]) for row in rows] == [(text, text) for text in TEXTS]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"image_column": "sample.picture"}, "--image_column sample.picture is not a column"),
        ({"image_column": "sample.n"}, "--image_column sample.n is int64, but it must be binary"),
        ({"image_column": "sample"}, "--image_column sample is struct<"),
        ({"caption_column": "sample.text"}, "--caption_column sample.text is not a column"),
        ({"caption_column": "sample.n"}, "the caption column sample.n is int64, but it must be text"),
        ({"caption_column": "sample.caption[0]"}, "sample.caption is string, not a list; omit [0]"),
        ({"key_column": "sample.image"}, "--key_column sample.image is struct<"),
        ({"key_column": "sample.id"}, "--key_column sample.id is not a column"),
        ({"columns": (Column("x", "sample.x"),)}, "--columns sample.x is not a column"),
        ({"columns": (Column("x", "sample"),)}, "--columns sample is struct<"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_a_nested_place_that_cannot_be_used_is_refused_before_the_run(options, said, tmp_path):
    path = write(tmp_path / "a.parquet", image=PICTURES, sample=NESTED)
    assert said in refusal(path, **options)


def test_binary_however_nested_is_in_no_metadata(tmp_path):
    hidden = {
        "struct": [{"a": {"b": b"\xff"}}] * 4,
        "lists": pa.array([[[b"\xff"]]] * 4, pa.list_(pa.list_(pa.binary()))),
        "coded": pa.array([b"\xff"] * 4).dictionary_encode(),
        "fixed": pa.array([b"\xff\xff"] * 4, pa.binary(2)),
        "mapped": pa.array([[("a", b"\xff")]] * 4, pa.map_(pa.string(), pa.binary())),
    }
    path = write(tmp_path / "a.parquet", image=PICTURES, n=list(range(4)), **hidden)
    assert json.loads(read(path, tmp_path)[0][3]["metadata"]) == {"n": 3}
    path = write(tmp_path / "l.parquet", url=["https://x/1"] * 4, text=TEXTS, n=list(range(4)), **hidden)
    rows, _, _ = read(path, tmp_path)
    assert json.loads(rows[3]["metadata"]).keys() == {"url", "n"} and [row["caption"] for row in rows] == TEXTS


SPARK = {
    "path": [f"file:/mnt/photos/{i}.jpg" for i in range(4)],
    "length": [len(data) for data in PICTURES],
    "content": PICTURES,
}


@pytest.mark.parametrize(
    ("columns", "place"),
    [
        (SPARK, "content"),
        (
            {"url": ["https://x/1"] * 4, "caption": TEXTS, "hash": [b"\xfe\xd8" * 16] * 4, "image_data": PICTURES},
            "image_data",
        ),
        ({"caption": TEXTS, "img": [None, None, b"", PICTURES[3]]}, "img"),
        ({"caption": TEXTS, "sample": NESTED}, "sample.image"),
        ({"caption": TEXTS, "photo": [b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"] * 4}, "photo"),
    ],
    ids=["binaryFile of Spark", "beside a URI", "beside captions, nulls first", "in a struct", "HEIC"],
)
def test_the_one_column_whose_bytes_are_pictures_is_the_image(columns, place, tmp_path):
    path = write(tmp_path / "a.parquet", **columns)
    assert detection(path) == [
        f"{path}: 1 Parquet shard with images",
        f"note: no column of {path} has a usual name for images; {place} holds pictures",
    ]
    expected = images_of(read(path, tmp_path, ReaderOptions(image_column=place))[0])
    rows, _, errors = read(path, tmp_path)
    assert not errors and images_of(rows) == expected and any(expected)


def test_several_columns_of_pictures_are_named_with_the_flag(tmp_path):
    path = write(tmp_path / "a.parquet", caption=TEXTS, jpg_0=PICTURES, jpg_1=PICTURES, n=[1, 2, 3, 4])
    assert refusal(path) == (
        "the bytes in jpg_0 and jpg_1 are pictures, and none of the columns has a usual name for images; choose one: "
        f"--image_column 'jpg_0' ({path})"
    )
    assert images_of(read(path, tmp_path, ReaderOptions(image_column="jpg_1"))[0]) == PICTURES
    assert take_inventory([str(path)], ReaderOptions(input_format="listing")).formats == {"listing"}


def test_bytes_that_are_no_pictures_leave_a_listing_a_listing_and_are_named(tmp_path):
    path = write(tmp_path / "a.parquet", caption=TEXTS, vector=[b"\0" * 512] * 4, blob=[None] * 3 + [b"abc"])
    lines = detection(path)
    assert lines[:2] == [
        f"{path}: 1 listing",
        f"note: {path}: the first values of vector and blob are no pictures, so none are read; --image_column "
        "'vector' takes them as images all the same",
    ]
    rows, _, _ = read(path, tmp_path, ReaderOptions(image_column="vector"))
    assert images_of(rows) == [b"\0" * 512] * 4


@pytest.mark.parametrize("name", ["all by path", "null as the type of bytes", "no bytes"])
def test_a_column_whose_paths_are_pictures_is_the_image_too(name, with_files, tmp_path):
    type_, values = STRUCTS[name]
    path = write(with_files / "a.parquet", caption=TEXTS, photo=pa.array([None, *values[1:]], type_))
    assert detection(path)[1] == f"note: no column of {path} has a usual name for images; photo holds pictures"
    assert images_of(read(path, tmp_path)[0]) == [None, *PICTURES[1:]]
    path = write(
        with_files / "a.parquet", caption=TEXTS, photos=pa.array([[value] for value in values], pa.list_(type_))
    )
    assert "choose one: --image_column 'photos[0]'" in refusal(path)
    sounds = [{"path": "a.wav"}] * 4
    path = write(with_files / "a.parquet", caption=TEXTS, audio=pa.array(sounds, STRUCTS["no bytes"][0]))
    assert "the first values of audio are no pictures" in detection(path)[1]


def test_bytes_in_a_type_in_which_none_can_be_named_are_said_not_to_be_read(tmp_path):
    by_name = pa.array([[("front", data)] for data in PICTURES], pa.map_(pa.string(), pa.binary()))
    path = write(tmp_path / "a.parquet", caption=TEXTS, pictures=by_name, md5=pa.array([b"x" * 16] * 4, pa.binary(16)))
    assert detection(path)[1:] == [
        f"note: {path}: the column pictures is map<string, binary ('pictures')>, which is not read as a picture",
        f"note: {path} names no images, so its captions alone are embedded; --image_column NAME names some",
    ]


def test_pixels_in_lists_are_said_to_be_no_picture(tmp_path):
    pixels = pa.array([[[[0.5] * 3] * 2] * 2] * 4, pa.list_(pa.list_(pa.list_(pa.float32()))))
    path = write(tmp_path / "a.parquet", caption=TEXTS, image=pixels)
    assert "the column image is list<" in detection(path)[1] and "which is not read as a picture" in detection(path)[1]


def test_what_the_bytes_of_one_file_tell_holds_for_its_siblings(tmp_path):
    write(tmp_path / "a.parquet", caption=TEXTS, content=PICTURES)
    write(tmp_path / "b.parquet", caption=TEXTS, content=pa.nulls(4, pa.binary()))
    write(tmp_path / "c.parquet", caption=TEXTS, content=TEXTS)
    lines = detection(tmp_path)
    assert lines[0] == f"{tmp_path}: 2 Parquet shards with images and 1 Parquet file that cannot be read"
    assert lines[1].startswith(f"note: no column of {tmp_path}/a.parquet and 1 more has a usual name")
    assert "content is string, but binary in the other files" in lines[2]
    rows, _, errors = read(tmp_path, tmp_path)
    assert images_of(rows) == [*PICTURES, None, None, None, None] and len(errors) == 1


def test_no_page_is_read_if_a_column_is_found_by_its_name(tmp_path, monkeypatch):
    opened = []
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", lambda *args, **more: opened.append(args))
    take_inventory([make_parquet(tmp_path / "a.parquet", 3)], ReaderOptions())
    write(tmp_path / "b.parquet", content=PICTURES)
    take_inventory([str(tmp_path / "b.parquet")], ReaderOptions(image_column="content"))
    assert not opened


def test_a_webdataset_that_hugging_face_wrote_as_parquet(tmp_path):
    path = write(
        tmp_path / "a.parquet",
        jpg=pa.array([{"bytes": data, "path": f"{i}.jpg"} for i, data in enumerate(PICTURES)], IMAGE),
        json=[{"caption": text, "w": 3} for text in TEXTS],
        __key__=[f"k{i}" for i in range(4)],
    )
    rows, notes, errors = read(path, tmp_path, ReaderOptions(columns=(Column("w", "json.w", "int16"),)))
    assert not notes and not errors and images_of(rows) == PICTURES
    assert [(r["key"], r["caption"], r["w"]) for r in rows] == [(f"k{i}", TEXTS[i], 3) for i in range(4)]
    assert json.loads(rows[0]["metadata"]) == {"json": {"caption": TEXTS[0], "w": 3}}


def test_a_caption_column_goes_before_the_caption_in_json(tmp_path):
    path = write(tmp_path / "a.parquet", jpg=PICTURES, txt=TEXTS, json=[{"caption": "no"}] * 4)
    assert [row["caption"] for row in read(path, tmp_path)[0]] == TEXTS
    path = write(tmp_path / "a.parquet", jpg=PICTURES, json=[{"caption": 7}] * 4)
    assert [row["caption"] for row in read(path, tmp_path)[0]] == [None] * 4


def test_a_unit_without_a_column_of_captions_notes_the_texts_that_it_has(tmp_path):
    path = write(tmp_path / "a.parquet", sample=NESTED, meta=[{"alt": text} for text in TEXTS])
    _, notes, _ = read(path, tmp_path)
    assert notes == {"field.sample.caption": 1, "field.meta.alt": 1}
    for name in ("sample.caption", "meta.alt"):
        rows, notes, _ = read(path, tmp_path, ReaderOptions(caption_column=name))
        assert [row["caption"] for row in rows] == TEXTS and not notes


@pytest.mark.parametrize("state", ["state.json", None])
@pytest.mark.parametrize("options", [{}, {"input_format": "parquet"}], ids=["auto", "parquet"])
def test_arrow_files_are_refused_with_what_to_do(options, state, tmp_path):
    folder = tmp_path / "disk" / "train"
    folder.mkdir(parents=True)
    with pa.ipc.new_stream(folder / "data-00000-of-00001.arrow", pa.schema([("a", pa.string())])):
        pass
    if state:
        (folder / state).write_text("{}")
    message = refusal(tmp_path / "disk", **options)
    assert f"holds Arrow files{' written by save_to_disk of Hugging Face' if state else ''}" in message
    assert (f"datasets.load_from_disk('{folder}').to_parquet(" if state else "pyarrow.parquet.write_table") in message


def test_the_independent_count_agrees_on_pictures_by_path_by_bytes_and_in_types(with_files, embed, tmp_path):
    half = [*STRUCTS["half by path"][1], None, {"bytes": None, "path": None}, {"bytes": None, "path": "gone.jpg"}]
    inputs = [
        write(with_files / "half.parquet", image=pa.array(half, IMAGE), text=[*TEXTS, "e", None, " "]),
        write(tmp_path / "spark.parquet", **SPARK),
        write(tmp_path / "types.parquet", image=TYPES["list of uint8"], text=TEXTS),
        write(tmp_path / "wds.parquet", jpg=TYPES["dictionary"], json=[{"caption": "a"}, {"caption": None}] * 2),
        write(tmp_path / "captions.parquet", text=TEXTS, vector=[b"\0" * 512] * 4),
    ]
    for path in inputs:
        embed(path, output=tmp_path / f"out-{path.stem}", flags=["--max_reject_fraction", "1"])
        result = read_run(str(tmp_path / f"out-{path.stem}"))
        assert count_sources.compare(result, [str(path)]) == [], path


def test_dotted_names_work_in_a_listing_in_parquet_too(with_files, tmp_path):
    rows = [
        {"uri": path, "said": [text], "id": f"k{i}"} for i, (path, text) in enumerate(zip(PATHS, TEXTS, strict=True))
    ]
    path = write(with_files / "l.parquet", sample=rows, n=list(range(4)))
    options = ReaderOptions(
        image_column="sample.uri",
        caption_column="sample.said[0]",
        key_column="sample.id",
        columns=(Column("id", "sample.id"),),
    )
    rows, notes, errors = read(path, tmp_path, options)
    assert not notes and not errors and images_of(rows) == PICTURES
    assert [(row["key"], row["caption"], row["id"]) for row in rows] == [(f"k{i}", TEXTS[i], f"k{i}") for i in range(4)]
    assert "--columns sample.x is not a column" in refusal(
        path, image_column="sample.uri", columns=(Column("x", "sample.x"),)
    )


BASE64 = {
    "base64": base64.b64encode,
    "url-safe": base64.urlsafe_b64encode,
    "in lines": base64.encodebytes,
    "data URI": lambda data: b"data:image/jpeg;base64," + base64.b64encode(data),
}


@pytest.mark.parametrize("name", ["image", "picture"])
@pytest.mark.parametrize("form", BASE64)
def test_base64_in_a_column_of_bytes_is_the_picture(form, name, tmp_path):
    values = [BASE64[form](PICTURES[0]), PICTURES[1], None, BASE64[form](b"x" * 6_000), b"/9j/ no base64"]
    if name == "picture":
        values = values[:3]
    path = write(tmp_path / "a.parquet", **{name: values, "n": list(range(len(values)))})
    rows, notes, _ = read(path, tmp_path, ReaderOptions(max_image_bytes=5_000), batch_size=2)
    whole = BASE64[form](b"x" * 6_000)
    expected = [PICTURES[0], PICTURES[1], None, "image too large", b"/9j/ no base64"]
    assert images_of(rows) == expected[: len(values)] and len(whole) > 6_000
    assert [row["metadata"] for row in rows] == [f'{{"n": {i}}}' for i in range(len(values))]


def test_a_data_uri_as_a_path_and_base64_as_bytes_of_a_struct(tmp_path):
    text = base64.b64encode(PICTURES[0])
    values = [{"bytes": text, "path": None}, {"bytes": None, "path": f"data:image/jpeg;base64,{text.decode()}"}]
    rows, _, _ = read(write(tmp_path / "a.parquet", image=pa.array(values, IMAGE)), tmp_path)
    assert images_of(rows) == [PICTURES[0]] * 2
    assert [row["image:uri"] for row in rows] == ["a picture as base64", "data:image/jpeg;base64"]
