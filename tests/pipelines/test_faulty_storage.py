"""A dataset from S3 to S3 while every third request fails; and what must never be found in it."""

import itertools
import json
import random

import fsspec
import pytest
from conftest import make_folder, make_parquet, make_tar, rows_of

FAULTS = ["503", "reset", "cut", "500", "slow", "deaf"]
ATTRIBUTES = ("embeddings", "labels", "rejects", "taxonomies")


@pytest.fixture
def tars(s3, tmp_path):
    for i in range(3):
        s3.fs.put_file(make_tar(tmp_path / f"{i}.tar", 6, first=10 * i), f"bucket/in/{i}.tar")
    return ["s3://bucket/in/*.tar"]


@pytest.fixture
def inputs(tars, s3, tmp_path):
    s3.fs.put_file(make_parquet(tmp_path / "p.parquet", 12, first=50), "bucket/in/p.parquet")
    s3.fs.put(make_folder(tmp_path / "photos", 4, first=70) + "/", "bucket/photos/", recursive=True)
    return [*tars, "s3://bucket/in/p.parquet", "s3://bucket/photos"]


def objects(s3, prefix):
    found = {name.removeprefix(f"bucket/{prefix}/"): s3.fs.cat_file(name) for name in s3.fs.find(f"bucket/{prefix}")}
    return {name: data for name, data in found.items() if name.partition("/")[0] in ATTRIBUTES}


def test_a_dataset_from_s3_to_s3_with_faults_is_the_same_bytes(embed, s3, inputs, taxonomy_file):
    flags = ["--taxonomy", taxonomy_file]
    embed(*inputs, output="s3://bucket/calm", flags=flags)
    calm = objects(s3, "calm")
    s3.seen.clear()
    rng, ways = random.Random(0), itertools.cycle(FAULTS)
    s3.fault = lambda number, method, path: "hang" if number in (20, 80) else next(ways) if rng.random() < 0.3 else None
    embed(*inputs, output="s3://bucket/faulty", flags=flags)
    assert len(s3.faults()) > 20 and {"hang", *FAULTS} == set(s3.faults())
    assert all(len(s3.faults(method)) > 2 for method in ("PUT", "GET", "HEAD"))
    s3.fault = lambda *_: None
    assert objects(s3, "faulty") == calm and len(calm) == 5 * 3 + 1
    left = s3.fs.find("bucket/faulty/_temporary")
    assert s3.fs.exists("bucket/faulty/_SUCCESS") and left == []
    runs = [json.loads(s3.fs.cat_file(f"bucket/{name}/run.json")) for name in ("calm", "faulty")]
    assert runs[0]["input"] == runs[1]["input"] and runs[0]["dataset"] == runs[1]["dataset"]


def test_a_part_that_cannot_be_uploaded_fails_the_run_and_the_same_command_goes_on(embed, s3, tars, capfd):
    s3.fault = lambda number, method, path: "403" if method == "PUT" and "/out/embeddings/1" in path else None
    embed(*tars, output="s3://bucket/out", code=1)
    said = capfd.readouterr().err
    assert "the run failed: " in said and "/embeddings/1-" in said and "Access Denied" in said
    assert "the same command goes on from there" in said
    s3.fault = lambda *_: None
    assert not any("/1-" in name for name in s3.fs.find("bucket/out/embeddings"))
    embed(*tars, output="s3://bucket/out")
    embed(*tars, output="s3://bucket/calm")
    assert objects(s3, "out") == objects(s3, "calm")


def test_a_shard_that_is_forbidden_is_a_reject_and_tried_again(embed, s3, tars, tmp_path, capfd):
    s3.fault = lambda number, method, path: "403" if "/in/1.tar" in path else None
    embed(*tars, output=tmp_path / "out", code=3)
    assert "1 shard could not be read" in capfd.readouterr().out
    (reject,) = rows_of(tmp_path / "out", "rejects")
    assert (reject["modality"], reject["reason"]) == ("shard", "unreadable") and "PermissionError" in reject["message"]
    s3.fault = lambda *_: None
    embed(*tars, output=tmp_path / "out")
    assert len(rows_of(tmp_path / "out")) == 18


KEYS = ("AKIAFAKEFAKEFAKE", "c2VjcmV0")


def test_credentials_are_in_no_message_no_run_json_and_no_part(embed, s3, tars, capfd, caplog):
    flags = ["--", "--s3_access_key_id", KEYS[0], f"--s3_secret_access_key={KEYS[1]}"]
    embed(*tars, output="s3://bucket/out", flags=flags)
    s3.fault = lambda number, method, path: "403" if "/in/1.tar" in path else None
    embed(*tars, output="s3://bucket/damaged", flags=flags, code=3)
    s3.fault = lambda number, method, path: "403" if method == "PUT" and "/embeddings/" in path else None
    embed(*tars, output="s3://bucket/failed", flags=flags, code=1)
    s3.fault = lambda *_: "403"
    with pytest.raises((ValueError, OSError)) as refused:
        embed(*tars, output="s3://bucket/refused", flags=flags)
    s3.fault = lambda *_: None
    said = capfd.readouterr()
    everything = [said.out, said.err, caplog.text, str(refused.value)]
    written = [name for prefix in ("out", "damaged", "failed") for name in s3.fs.find(f"bucket/{prefix}")]
    assert len(written) > 12 and "bucket/out/run.json" in written
    everything += [name for name in written] + [s3.fs.cat_file(name).decode("latin-1") for name in written]
    for key in KEYS:
        assert not any(key in text for text in everything)
    command = json.loads(s3.fs.cat_file("bucket/out/run.json"))["command"]
    assert command[-3:] == ["--s3_access_key_id", "…", "--s3_secret_access_key=…"]


SECRETS = {
    "S3 key": ("s3://AKIAFAKE:hunter2@bucket/a.tar", "s3://…@bucket/a.tar"),
    "S3 key with a slash": ("s3://AKIAFAKE:hun/hunter2@bucket/a.tar", "s3://…@bucket/a.tar"),
    "S3 key without a bucket": ("s3://AKIAFAKE:hunter2/a.tar", "s3://…"),
    "web page": ("http://me:hunter2@host/a.tar", "http://…@host/a.tar"),
    "web page with a port": ("https://me:hunter2@host:8080/a.tar", "https://…@host:8080/a.tar"),
    "signed for S3": ("https://host/a.tar?X-Amz-Credential=AKIAFAKE&X-Amz-Signature=hunter2", "https://host/a.tar?…"),
    "token of a server": ("https://host/a.tar?x=1&access_token=hunter2", "https://host/a.tar?…"),
    "key of a service": ("https://host/a.tar?api_key=hunter2", "https://host/a.tar?…"),
    "signed for Azure": ("https://host/a.tar?sv=1&sig=hunter2", "https://host/a.tar?…"),
}


@pytest.mark.parametrize("place", ["--input", "--output", "--model", "--taxonomy", "--allow_uri"])
@pytest.mark.parametrize("name", SECRETS)
def test_a_uri_with_a_secret_in_it_is_refused_without_repeating_it(name, place, embed, tmp_path):
    uri, shown = SECRETS[name]
    uris = {"--input": make_tar(tmp_path / "a.tar", 1), "--output": tmp_path / "out", place: uri}
    rest = [word for flag in ("--model", "--taxonomy", "--allow_uri") if flag in uris for word in (flag, uri)]
    with pytest.raises(ValueError) as refused:
        embed(uris["--input"], output=uris["--output"], flags=rest)
    assert shown in str(refused.value) and "credentials where" in str(refused.value)
    assert "hunter2" not in str(refused.value) and "AKIAFAKE" not in str(refused.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "uri",
    ["s3://arn:aws:s3:eu-west-1:1:accesspoint/x/a.tar", "sftp://me@host:22/a.tar", "http://[::1]:80/a", "abfs://c@d/a"],
)
def test_what_only_looks_like_a_secret_is_not_refused(uri):
    from clip_transforms.storage.location import refuse_secrets

    refuse_secrets(uri)
    assert fsspec.utils.get_protocol(uri) in uri
