"""On an object store, a resumed run reads the kept footers, and still finds every part that has changed."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import make_tar

from clip_transforms import EmbedShards, label_embeddings, storage
from clip_transforms.clip.model_spec import ClipSpec
from clip_transforms.clip.taxonomy import Taxonomy, TaxonomyClass
from clip_transforms.parts import kept_footers
from clip_transforms.parts.dataset import Dataset
from clip_transforms.run.plan import plan_run
from clip_transforms.run.settings import Settings

OUT = "s3://bucket/out"
KINDS = ("embeddings", "labels/animals", "rejects")


TAXONOMY = Taxonomy("animals", (TaxonomyClass("cat"), TaxonomyClass("dog")))
MADE = {}  # the objects of the finished dataset, by name


@pytest.fixture(scope="module")
def tars(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tars")
    for i in range(6):
        make_tar(folder / f"{i}.tar", 2, first=10 * i)
    return f"{folder}/*.tar"


@pytest.fixture
def settings(tars, tiny_checkpoint):
    return Settings((tars,), OUT, ClipSpec(tiny_checkpoint, device="cpu", precision="fp32"), (TAXONOMY,))


@pytest.fixture
def run(settings, s3, monkeypatch):
    """Run over six tars into the bucket, in three tasks; return how many of the six were done."""
    monkeypatch.setattr("clip_transforms.run.job._MAX_UNITS_PER_TASK", 2)

    def run():
        s3.seen.clear()
        made = EmbedShards(settings.inputs, OUT, settings.model, settings.taxonomies, processes=1).run_here()
        assert made["complete"]
        return made["units"]["committed"]

    return run


@pytest.fixture
def made(run, s3):
    """The bucket after the first run."""
    if not MADE:
        assert run() == 6
        MADE.update({name: s3.fs.cat_file(name) for name in s3.fs.find("bucket/out")})
    else:
        restore(s3)
    s3.seen.clear()


def restore(s3):
    for name, data in MADE.items():
        s3.fs.pipe_file(name, data)


def pending(settings):
    """The shards that a run would do, and those that it would label."""
    storage.filesystem(OUT)[0].invalidate_cache()
    plan = plan_run(settings)
    to_label = [planned.unit for planned in plan.units if planned.labels]
    return [{unit.part[0] for unit in units} for units in (plan.pending, to_label)]


def opened(s3, kind):
    """Names of the shards whose parts were opened, such as `3`."""
    start = f"/bucket/out/{kind}/"
    return {path.removeprefix(start)[0] for method, path, _ in s3.seen if method == "GET" and path.startswith(start)}


def pages(s3, kind):
    """How many pages of the listing of a folder were asked for, and in how many walks."""
    folder = f"prefix=out%2F{kind.replace('/', '%2F')}%2F&"
    asked = [path for _, path, _ in s3.seen if "list-type" in path and folder in path]
    return len(asked), sum("continuation-token" not in path for path in asked)


def objects(s3, kind):
    return {name.rpartition("/")[2]: s3.fs.cat_file(name) for name in s3.fs.find(f"bucket/out/{kind}")}


def everything(s3):
    return {kind: objects(s3, kind) for kind in KINDS}


def kept(kind):
    return {part: stamp for part, stamp, _ in kept_footers.kept_footers(OUT, kind)}


def name_of(s3, kind, shard):
    return next(name for name in s3.fs.find(f"bucket/out/{kind}") if name.rpartition("/")[2].startswith(f"{shard}-"))


def damage(s3, kind, change):
    """Replace the part of shard 3."""
    name = name_of(s3, kind, 3)
    s3.fs.pipe_file(name, change(s3.fs.cat_file(name), s3.fs.cat_file(name_of(s3, kind, 2))))


def test_a_resumed_run_opens_no_part_and_walks_once_through_the_pages_of_a_folder(made, run, s3, monkeypatch):
    monkeypatch.setenv("MOTO_S3_DEFAULT_MAX_KEYS", "2")
    assert run() == 0
    assert [opened(s3, kind) for kind in KINDS] == [set()] * 3
    assert pages(s3, "rejects") == (3, 1)
    assert pages(s3, "embeddings") == pages(s3, "labels/animals") == (6, 2)  # planning, and the check at the end


def test_commands_over_a_dataset_read_the_kept_footers_too(made, s3):
    dataset = Dataset.open(OUT)
    assert opened(s3, "embeddings") == set() and dataset.counts["samples"] == 12 and len(dataset.digests) == 6


def test_labels_made_later_are_kept_too_and_labelling_again_opens_none(made, s3):
    more, kind = Taxonomy("more", (TaxonomyClass("red"), TaxonomyClass("blue"))), "labels/more"

    def labelled():
        s3.seen.clear()
        return label_embeddings(OUT, [more])["labelled"]["parts"]

    assert labelled() == 6 and len(kept(kind)) == 6
    assert labelled() == 0 and opened(s3, kind) == set()
    whole = objects(s3, kind)
    damage(s3, kind, lambda own, other: other)
    assert labelled() == 1 and opened(s3, kind) == {"3"} and objects(s3, kind) == whole


CHANGES = {
    "that of another unit": lambda own, other: other,
    "cut off": lambda own, other: own[:-1],
    "empty": lambda own, other: b"",
    "another digest in as many bytes": lambda own, other: own.replace(b'"digest": "', b'"digest": "0')[: len(own)],
    "another fingerprint in as many bytes": lambda own, other: own.replace(b'rprint": "', b'rprint": "?')[: len(own)],
}


# Each kind takes as long as ten other tests, and all go the same way: the others are slow ones.
@pytest.mark.parametrize("kind", [KINDS[0], *(pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS[1:])])
def test_a_part_that_was_replaced_or_removed_is_found_and_made_again(kind, made, settings, run, s3):
    whole, found = everything(s3), [set(), {"3"}] if kind == "labels/animals" else [{"3"}, set()]
    assert pending(settings) == [set(), set()]
    own = name_of(s3, kind, 3)
    for change in CHANGES.values():
        damage(s3, kind, change)
        assert objects(s3, kind) != whole[kind] and pending(settings) == found
        s3.fs.pipe_file(own, MADE[own])
    s3.fs.rm_file(own)
    assert pending(settings) == found
    assert run() == len(found[0]) and everything(s3) == whole
    s3.seen.clear()
    assert pending(settings) == [set(), set()]
    assert not any(opened(s3, kind) for kind in KINDS), "what was made again is kept"


def test_after_a_run_that_failed_only_the_parts_of_its_broken_task_are_opened(run, settings, s3):
    s3.fault = lambda number, method, path: "403" if method == "PUT" and "/out/embeddings/5" in path else None
    with pytest.raises(OSError):
        run()
    s3.fault = lambda *_: None
    s3.seen.clear()
    assert pending(settings) == [{"5"}, set()] and opened(s3, "embeddings") == {"4"}
    assert run() == 1
    s3.seen.clear()
    assert pending(settings) == [set(), set()] and opened(s3, "embeddings") == set(), "the end of a run keeps the rest"


def table_of_another_version():
    pq.write_table(pa.table({"part": ["x"]}), sink := pa.BufferOutputStream())
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize("data", [b"", b"PAR1 and no more", table_of_another_version(), None])
def test_without_the_kept_footers_the_parts_are_opened(data, made, settings, s3, caplog):
    for name in s3.fs.find("bucket/out/_footers"):
        s3.fs.rm_file(name) if data is None else s3.fs.pipe_file(name, data)
    assert pending(settings) == [set(), set()] and opened(s3, "embeddings") == opened(s3, "rejects") == set("012345")
    assert ("is damaged" in caplog.text) == (data is not None)


def test_a_file_that_goes_while_it_is_read_is_passed_over(made, s3, monkeypatch):
    files = kept_footers._files

    def gone_meanwhile(output, kind):
        found = files(output, kind)
        s3.fs.rm_file(f"bucket/out/_footers/{kind}/{min(found)}")
        return found

    monkeypatch.setattr(kept_footers, "_files", gone_meanwhile)
    assert len(kept("embeddings")) == 4


def test_a_footer_whose_part_is_replaced_while_it_is_read_is_not_kept(made, s3, monkeypatch):
    part = name_of(s3, "embeddings", 3).rpartition("/")[2].removesuffix(".parquet")
    read = kept_footers.footer_text

    def replaced_meanwhile(uri):
        text = read(uri)
        damage(s3, "embeddings", lambda own, other: other)
        return text

    s3.fs.rm("bucket/out/_footers", recursive=True)
    kept_footers.keep_footers(OUT, ["embeddings"], [part])
    assert set(kept("embeddings")) == {part}
    s3.fs.rm("bucket/out/_footers", recursive=True)
    monkeypatch.setattr(kept_footers, "footer_text", replaced_meanwhile)
    kept_footers.keep_footers(OUT, ["embeddings"], [part])
    assert kept("embeddings") == {}


def test_many_files_become_one_with_what_is_missing_and_without_what_is_old(made, s3, monkeypatch):
    kept_footers.tidy_footers(OUT, KINDS)
    assert [len(objects(s3, f"_footers/{kind}")) for kind in KINDS] == [3, 3, 3], "three are not many"
    stamps = kept("embeddings")
    damage(s3, "embeddings", lambda own, other: other)  # so 3 is kept in an old stamp
    (first, data), *_ = objects(s3, "_footers/embeddings").items()
    s3.fs.pipe_file("bucket/out/_footers/embeddings/twice.parquet", data)
    monkeypatch.setattr(kept_footers, "_MANY", 2)
    kept_footers.tidy_footers(OUT, ["embeddings", "rejects"])
    assert [len(objects(s3, f"_footers/{kind}")) for kind in KINDS] == [1, 3, 1]
    (data,) = objects(s3, "_footers/embeddings").values()
    table = pq.read_table(pa.BufferReader(data))
    now = kept("embeddings")
    assert table.num_rows == 6 and {part for part in now if now[part] != stamps[part]} == {
        part for part in stamps if part.startswith("3-")
    }


def test_no_footers_are_kept_on_this_machine_or_without_etags(embed, tmp_path):
    make_tar(tmp_path / "0.tar", 2)
    for output in (f"{tmp_path}/out", "memory://kept/out"):
        embed(f"{tmp_path}/*.tar", output=output)
        assert storage.names_in(f"{output}/embeddings") and storage.names_in(f"{output}/_footers") == []
