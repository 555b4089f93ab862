"""The layouts that other tools write, with their traps."""

import bz2
import gzip
import json
import lzma

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import make_folder, make_parquet, make_tar, pair, picture, rows_of, write_tar
from reading import read

from clip_transforms.clip.taxonomy import Taxonomy
from clip_transforms.shards.inventory import take_inventory
from clip_transforms.shards.unit import ReaderOptions
from schemas.samples import Column

# (key, picture or None, caption or None): what img2dataset downloaded, in the order in which it was done.
SAMPLES = [("000000002", 2, "two"), ("000000000", 0, None), ("000000003", 3, "three")]
FAILED = [("000000001", "failed_to_download"), ("000000004", "failed_to_resize")]


def columns(rows):
    return pa.table({name: [row[name] for row in rows] for name in rows[0]})


def described(key, caption, status, **more):
    return {"url": f"https://x/{key}", "caption": caption, "key": key, "status": status, "width": 40, **more}


def img2dataset_webdataset(folder):
    members = []
    for key, seed, caption in SAMPLES:
        texts = {"txt": caption and caption.encode(), "json": json.dumps(described(key, caption, "success")).encode()}
        members += [(f"{key}.jpg", picture(seed)), *((f"{key}.{e}", d) for e, d in texts.items() if d)]
    write_tar(folder / "00000.tar", members)
    sidecar(folder)


def img2dataset_files(folder):
    (folder / "00000").mkdir()
    for key, seed, caption in SAMPLES:
        (folder / "00000" / f"{key}.jpg").write_bytes(picture(seed))
        (folder / "00000" / f"{key}.json").write_text(json.dumps(described(key, caption, "success")))
        if caption:
            (folder / "00000" / f"{key}.txt").write_text(caption)
    sidecar(folder)


def img2dataset_parquet(folder):
    rows = [described(key, caption, "success", jpg=picture(seed)) for key, seed, caption in SAMPLES]
    rows += [described(key, "was never fetched", status, jpg=None) for key, status in FAILED]
    pq.write_table(columns(rows), folder / "00000.parquet", row_group_size=2)
    (folder / "00000_stats.json").write_text("{}")


def sidecar(folder):
    rows = [described(key, caption, "success") for key, _, caption in SAMPLES]
    pq.write_table(columns(rows + [described(key, "c", status) for key, status in FAILED]), folder / "00000.parquet")
    (folder / "00000_stats.json").write_text("{}")


@pytest.mark.parametrize("layout", [img2dataset_webdataset, img2dataset_files, img2dataset_parquet])
def test_img2datasets_layouts_give_the_same_samples(layout, tmp_path):
    layout(tmp_path)
    rows, notes, errors = read(tmp_path, tmp_path, ReaderOptions(columns=(Column("url", "url"),)))
    assert not notes and not errors
    offered = {row["key"].rpartition("/")[2].removesuffix(".jpg"): row for row in rows if row["image"]}
    assert {k: (r["image"], r["caption"]) for k, r in offered.items()} == {k: (picture(s), c) for k, s, c in SAMPLES}
    assert all(row["url"] == f"https://x/{key}" for key, row in offered.items())
    failed = [row for row in rows if not row["image"]]
    assert len(failed) == (2 if layout is img2dataset_parquet else 0)
    assert not any(row["caption"] or row["image_reject"] or row["caption_reject"] for row in failed)
    if layout is not img2dataset_files:
        assert [row["key"] for row in rows][:3] == [key for key, _, _ in SAMPLES]


def as_the_shell_writes_it(folder):
    return sorted(map(str, folder.iterdir()))


def as_globs(folder):
    return [f"{folder}/*.parquet", *(f"{folder}/*{e}" for e in (".tar", "") if any(folder.glob(f"*{e}")))]


@pytest.mark.parametrize("named", [as_the_shell_writes_it, as_globs])
@pytest.mark.parametrize("layout", [img2dataset_webdataset, img2dataset_files, img2dataset_parquet])
def test_img2datasets_layouts_may_be_named_file_by_file(layout, named, tmp_path):
    folder = tmp_path / "web"
    folder.mkdir()
    layout(folder)
    whole = take_inventory([str(folder)], ReaderOptions())
    for inputs in (named(folder), named(folder)[::-1]):
        found = take_inventory(inputs, ReaderOptions())
        assert [unit.format for unit in found.units] == [unit.format for unit in whole.units]
        if layout is not img2dataset_files:  # whose folder is named by its own name here
            assert found.units == whole.units


def test_a_sidecar_alone_is_a_listing_and_statistics_alone_are_refused(tmp_path):
    sidecar(tmp_path)
    assert [unit.format for unit in take_inventory([f"{tmp_path}/00000.parquet"], ReaderOptions()).units] == ["listing"]
    with pytest.raises(ValueError, match="00000_stats.json holds no pictures .* but 1 statistics"):
        take_inventory([f"{tmp_path}/00000_stats.json"], ReaderOptions())


def test_a_parquet_file_with_images_is_read_though_a_tar_of_its_stem_is_named_too(tmp_path):
    inputs = [make_tar(tmp_path / "a.tar", 2), make_parquet(tmp_path / "a.parquet", 2)]
    assert {unit.format for unit in take_inventory(inputs, ReaderOptions()).units} == {"webdataset", "parquet"}


def test_the_sidecar_of_a_tfrecord_is_no_listing(tmp_path):
    sidecar(tmp_path)
    (tmp_path / "00000.tfrecord").write_bytes(b"x" * 100)
    found = take_inventory([str(tmp_path)], ReaderOptions())
    assert found.detection == [f"{tmp_path}: 1 TFRecord shard; not read: 1 _stats.json, 1 sidecar Parquet"]
    assert take_inventory([str(tmp_path)], ReaderOptions(input_format="listing")).formats == {"listing"}


def clip_benchmark(folder, count=2, said=None):
    (folder / "test").mkdir(parents=True)
    for i in range(count):
        members = [(f"s{j}.{e}", d) for j in (2 * i, 2 * i + 1) for e, d in (("webp", picture(j)), ("cls", b"%d" % j))]
        write_tar(folder / "test" / f"{i}.tar", members)
    (folder / "test" / "nshards.txt").write_text(f"{count if said is None else said}\n")
    (folder / "classnames.txt").write_text("zero\none\ntwo\nthree\n")
    (folder / "zeroshot_classification_templates.txt").write_text("a photo of a {c}.\na bad photo of a {c}.\n")
    return folder


def test_a_clip_benchmark_dataset_is_input_and_taxonomy(tmp_path, embed):
    folder = clip_benchmark(tmp_path / "wds_digits", count=11)
    found = take_inventory([str(folder)], ReaderOptions())
    assert found.detection == [f"{folder}: 11 webdataset shards"] and len(found.units) == 11
    rows, _, _ = read(folder / "test" / "{0..1}.tar", tmp_path, ReaderOptions(columns=(Column("cls", "cls", "int32"),)))
    assert [(row["key"], row["cls"], row["caption"]) for row in rows] == [(f"s{j}", j, None) for j in range(4)]
    taxonomy = Taxonomy.load(str(folder))
    assert (taxonomy.name, taxonomy.class_names) == ("wds_digits", ["zero", "one", "two", "three"])
    assert taxonomy.prompts(taxonomy.classes[1]) == ["a photo of a one.", "a bad photo of a one."]
    embed(folder, output=tmp_path / "out", flags=["--taxonomy", folder, "--columns", "cls:int32"])
    assert sorted(row["cls"] for row in rows_of(tmp_path / "out")) == list(range(22))
    assert (tmp_path / "out" / "labels" / "wds_digits").is_dir()


def test_a_shard_that_nshards_counts_and_that_is_missing_is_warned_of(tmp_path):
    folder = clip_benchmark(tmp_path / "wds", count=2, said=5)
    assert take_inventory([str(folder)], ReaderOptions()).detection[1] == (
        f"warning: {folder}/test/nshards.txt says 5 shards, but 2 tars lie beside it"
    )


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress], ids=["gzip", "bzip2", "xz"])
@pytest.mark.parametrize("name", ["a.tar.gz", "a.tgz", "a.tar"])
def test_a_compressed_tar_is_recognised_by_its_bytes(compress, name, tmp_path):
    plain = make_tar(tmp_path / "plain", 5)
    (tmp_path / name).write_bytes(compress(open(plain, "rb").read()))
    rows, _, errors = read(tmp_path / name, tmp_path)
    assert not errors and [row["image"] for row in rows] == [picture(i) for i in range(5)]


def test_a_gzip_of_several_pieces_is_read_to_its_end(tmp_path):
    data = open(make_tar(tmp_path / "plain", 5), "rb").read()
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(data[:3000]) + gzip.compress(data[3000:]) + b"\0" * 100)
    rows, _, errors = read(tmp_path / "a.tar.gz", tmp_path)
    assert not errors and len(rows) == 5


def test_a_datacomp_uid_survives(tmp_path):
    uid = "0" * 31 + "f"
    write_tar(tmp_path / "a.tar", pair("000000000000", 0, json=json.dumps({"uid": uid, "sha256": "x"}).encode()))
    ((row,), _, _) = read(tmp_path / "a.tar", tmp_path, ReaderOptions(columns=(Column("uid", "uid"),)))
    assert row["uid"] == uid and row["key"] == "000000000000"


def test_datacomp_metadata_and_laions_are_listings(tmp_path):
    path = tmp_path / "m.parquet"
    pq.write_table(pa.table({"uid": ["a", "b"], "url": ["https://x/1", None], "text": ["one", "two"]}), path)
    pq.write_table(pa.table({"URL": ["https://x/1"], "TEXT": ["three"]}), tmp_path / "n.parquet")
    rows, _, _ = read(tmp_path, tmp_path)
    assert [(row["key"], row["caption"]) for row in rows] == [("a", "one"), ("b", "two"), ("0", "three")]
    assert [row["image_reject"] and row["image_reject"]["reason"] for row in rows] == [
        "not allowed",
        None,
        "not allowed",
    ]


def test_hugging_faces_parquet_with_its_features_in_the_footer(tmp_path):
    images = pa.array([{"bytes": picture(0), "path": None}, {"bytes": picture(1), "path": "x.png"}])
    table = pa.table({"image": images, "label": [3, 4], "text": ["a", None]})
    table = table.replace_schema_metadata({"huggingface": '{"info": {"features": {"image": {"_type": "Image"}}}}'})
    (tmp_path / "data").mkdir()
    pq.write_table(table, tmp_path / "data" / "train-00000-of-00001.parquet")
    (tmp_path / "README.md").write_text("a card")
    rows, _, _ = read(tmp_path, tmp_path, ReaderOptions(columns=(Column("label", "label", "int8"),)))
    assert [(r["image"], r["caption"], r["label"]) for r in rows] == [(picture(0), "a", 3), (picture(1), None, 4)]
    (line,) = take_inventory([str(tmp_path)], ReaderOptions()).detection
    assert line == f"{tmp_path}: 1 Parquet shard with images; not read: 1 .md"


def test_inputs_that_name_the_same_things_are_read_once(tmp_path):
    (tmp_path / "t").mkdir()
    make_tar(tmp_path / "t" / "a.tar", 2)
    make_parquet(tmp_path / "t" / "a2.parquet", 3)
    make_folder(tmp_path / "p", 4)
    (tmp_path / "l.csv").write_text("caption\na\n")
    (tmp_path / "list.txt").write_text(f"\ufeff{tmp_path}/t\r\n{tmp_path}/l.csv\r\n")
    inputs = [f"@{tmp_path}/list.txt", f"{tmp_path}/t/{{a,a2}}.*", f"{tmp_path}//t/", f"file://{tmp_path}/t/a.tar"]
    inputs += [f"{tmp_path}/p", f"{tmp_path}/p/000001.jpg", f"{tmp_path}/*.csv", f"{tmp_path}/l.csv"]
    found = take_inventory(inputs, ReaderOptions())
    assert sorted(unit.format for unit in found.units) == ["folder", "listing", "parquet", "webdataset"]
    assert sum(table.num_rows for rows in found.side_files.values() for table in rows.tables(())) == 4


def test_a_folder_says_which_texts_and_files_it_did_not_read(tmp_path):
    make_folder(tmp_path, 2)
    for name in ("notes.txt", "b.caption", "a.jp2", "b.JP2", "x", "c.csv", "d.zip"):
        (tmp_path / name).write_text("caption\na")
    assert take_inventory([str(tmp_path)], ReaderOptions()).detection == [
        f"{tmp_path}: a folder of 2 pictures; not read: 2 .jp2, 1 .zip, 1 listing (--input_format listing), "
        "1 no extension, 2 texts without a picture"
    ]
