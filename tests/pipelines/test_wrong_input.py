"""Every wrong setting is one sentence and exit 2, before anything is written or started, and without torch."""

import json
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import ROOT, command, make_parquet, make_tar

from pipelines import embed

GOOD = ["--input", "a.tar", "--output", "out", "--model", "tiny.safetensors"]
DONE = ["--input", "a.tar", "--output", "done", "--model", "tiny.safetensors"]
MODEL = ["--input", "a.tar", "--output", "out", "--model"]
PORTABLE = ["--runner", "PortableRunner", "--job_endpoint"]
INPUT = ["--output", "out", "--model", "tiny.safetensors", "--input"]
# id → (command line, pieces that the sentence must have)
CASES = {
    "no flag": (["a.tar", *GOOD[2:]], ["'a.tar' has no flag before it", "--input a.tar"]),
    "no match": ([*INPUT, "nothing-*.tar"], ["--input nothing-*.tar matches nothing", "quote"]),
    "empty folder": ([*INPUT, "empty"], ["--input empty", "empty folder", ".tar"]),
    "nothing to read": ([*INPUT, "words"], ["holds no pictures", "jpg"]),
    "no input": (["--output", "out", "--model", "demo"], ["--input is missing"]),
    "no output": (["--input", "a.tar", "--model", "demo"], ["--output is missing"]),
    "unknown flag": ([*GOOD, "--btach_size", "3"], ["--btach_size is not a flag", "did you mean --batch_size?"]),
    "abbreviated flag": ([*GOOD, "--batch", "3"], ["--batch is not a flag", "did you mean --batch_size?"]),
    "beam flag misspelt": ([*GOOD, "--direct_num_worker", "2"], ["did you mean --direct_num_workers?"]),
    "beam flag abbreviated": ([*GOOD, "--direct_num", "2"], ["--direct_num is not a flag"]),
    "positional": ([*GOOD[:2], *GOOD[2:], "--limit", "3", "stray"], ["'stray' has no flag before it"]),
    "no number": ([*GOOD, "--limit", "many"], ["--limit is 'many'", "a whole number", "the default, 0"]),
    "no fraction": ([*GOOD, "--max_reject_fraction", "5%"], ["--max_reject_fraction is '5%'", "a number", "0.05"]),
    "no value": ([*GOOD, "--limit"], ["--limit needs a value", "write --limit N"]),
    "no values": ([*GOOD, "--columns"], ["--columns needs a value", "NAME[=FIELD][:TYPE]"]),
    "dash value": ([*GOOD[2:], "--input", "-a.tar"], ["--input needs a value", "--input=…"]),
    "switch with a value": ([*GOOD, "--dry_run=yes"], ["--dry_run is a switch", "write --dry_run alone"]),
    "beam number": ([*GOOD, "--direct_num_workers", "two"], ["--direct_num_workers is 'two'", "a whole number"]),
    "beam number behind dashes": ([*GOOD, "--", "--direct_num_workers", "two"], ["--direct_num_workers is 'two'"]),
    "beam choice": (
        [*GOOD, "--direct_running_mode", "fast"],
        ["--direct_running_mode is 'fast'", "in_memory, multi_threading or multi_processing"],
    ),
    "beam json": ([*GOOD, "--direct_test_splits", "{"], ["--direct_test_splits is '{'", "JSON"]),
    "too few processes": ([*GOOD, "--direct_num_workers", "-1"], ["--direct_num_workers is -1", "0 for one per core"]),
    "too many processes": ([*GOOD, "--direct_num_workers", "99999"], ["is 99999", "(16 for each of the "]),
    "no setup file": ([*GOOD, "--setup_file", "./gone/setup.py"], ["is './gone/setup.py'", "no such file"]),
    "other setup file": ([*GOOD, "--setup_file", "a.tar"], ["--setup_file is 'a.tar'", "setup.py"]),
    "environment without address": (
        [*GOOD, *PORTABLE, "embed", "--environment_type", "EXTERNAL"],
        ["external_service_address is required"],
    ),
    "no endpoint": ([*GOOD, "--runner", "PortableRunner"], ["--job_endpoint is missing", "host:port"]),
    "half an endpoint": ([*GOOD, *PORTABLE, "localhost"], ["--job_endpoint is 'localhost'", "host:port"]),
    "nobody at the endpoint": ([*GOOD, *PORTABLE, "127.0.0.1:1"], ["is 127.0.0.1:1, but it cannot be reached"]),
    "a runner that loses data": ([*GOOD, "--runner", "DaskRunner"], ["--runner is DaskRunner", "drops", "--units"]),
    "no module of that runner": ([*GOOD, "--runner", "nope.Nope"], ["Beam refuses", "nope"]),
    "batch size": ([*GOOD, "--batch_size", "-2"], ["--batch_size is -2", "1 or more"]),
    "top labels": ([*GOOD, "--top_labels", "-1"], ["--top_labels is -1", "1 or more"]),
    "limit": ([*GOOD, "--limit", "-1"], ["--limit is -1", "0"]),
    "image bytes": ([*GOOD, "--max_image_bytes", "0"], ["--max_image_bytes is 0", "1 to 2,147,483,647"]),
    "image pixels": ([*GOOD, "--max_image_pixels", "0"], ["--max_image_pixels is 0", "1 or more"]),
    "caption bytes": ([*GOOD, "--max_caption_bytes", "-1"], ["--max_caption_bytes is -1", "1 to 2,147,483,647"]),
    "reject fraction": ([*GOOD, "--max_reject_fraction", "5"], ["--max_reject_fraction is 5.0", "[0, 1]"]),
    "precision": ([*GOOD, "--precision", "fp8"], ["--precision is 'fp8', but it must be", "fp32"]),
    "unknown model": ([*MODEL, "ViT-B/23"], ["--model ViT-B/23", "RN50x64", "did you mean ViT-B/32?"]),
    "no model": (GOOD[:4], ["--model is missing", "demo", "ViT-B/32"]),
    "model cannot be had": (
        [*MODEL, "vit-l-14"],
        ["ViT-L/14 cannot be downloaded from https://openaipublic", "get that file", "/ViT-L-14.pt", "CLIP_CACHE"],
    ),
    "model of the hub": ([*MODEL, "openai/clip-vit-base-patch32"], ["did you mean hf://openai/clip-vit-base-patch32"]),
    "checkpoint missing": ([*MODEL, "gone/x.pt"], ["--model gone/x.pt is neither a file"]),
    "checkpoint is a folder": ([*MODEL, "empty"], ["--model empty", "this folder holds no model", "config.json"]),
    "checkpoint is text": ([*MODEL, "words/a.xyz"], ["neither a .safetensors file nor"]),
    "checkpoint of another kind": ([*MODEL, "other.pt"], ["ln_final.weight is missing"]),
    "checkpoint with code": ([*MODEL, "code.pt"], ["nothing was run"]),
    "checkpoint without activation": ([*MODEL, "plain.pt"], ["--activation quick_gelu", "--activation gelu", "wrong"]),
    "another activation": ([*GOOD, "--activation", "gelu"], ["--activation is gelu", "trained with quick_gelu"]),
    "unknown activation": ([*GOOD, "--activation", "relu"], ["--activation is 'relu', but", "quick_gelu or gelu"]),
    "taxonomy missing": ([*GOOD, "--taxonomy", "gone.json"], ["--taxonomy gone.json does not exist"]),
    "taxonomy folder": ([*GOOD, "--taxonomy", "empty"], ["--taxonomy empty cannot be read"]),
    "taxonomy of another kind": ([*GOOD, "--taxonomy", "good.csv"], ["good.csv has the extension .csv", ".txt file"]),
    "taxonomy packed": ([*GOOD, "--taxonomy", "gone.json.gz"], ["has the extension .gz", ".txt file"]),
    "taxonomy empty": ([*GOOD, "--taxonomy", "blank.txt"], ["--taxonomy blank.txt is empty"]),
    "taxonomy no classes": ([*GOOD, "--taxonomy", "none.json"], ["--taxonomy none has no classes"]),
    "taxonomy twice a class": ([*GOOD, "--taxonomy", "twice.txt"], ["the class 'cat' 2 times"]),
    "taxonomy no slot": ([*GOOD, "--taxonomy", "slot.json"], ["'a photo'", "no slot", "{}"]),
    "taxonomy bad json": ([*GOOD, "--taxonomy", "bad.json"], ["line 2, column 3"]),
    "taxonomy not utf-8": ([*GOOD, "--taxonomy", "latin.txt"], ["not UTF-8 at byte 1"]),
    "taxonomy field": ([*GOOD, "--taxonomy", "field.json"], ["'clases'", "classes and templates"]),
    "two taxonomies of a name": ([*GOOD, "--taxonomy", "a/t.txt", "--taxonomy", "b/t.txt"], ["t is given 2 times"]),
    "taxonomy name": ([*GOOD, "--taxonomy", "two words.txt"], ["'two words'", "A-Z"]),
    "column type": ([*GOOD, "--columns", "a:int33"], ["'int33'", "int32"]),
    "column name of ours": ([*GOOD, "--columns", "Clip_Score=x"], ["the name of a column of ours", "my_Clip_Score=x"]),
    "column twice": ([*GOOD, "--columns", "a=x", "A=y"], ["names one column twice"]),
    "column unnamed": ([*GOOD, "--columns", "=x"], ["has no name"]),
    "column not there": ([*INPUT, "p.parquet", "--columns", "a=x"], ["--columns x is not a column", "caption"]),
    "several captions": ([*INPUT, "lists.parquet", "--caption_column", "captions"], ["captions[0]"]),
    "flag for another format": ([*GOOD, "--image_column", "x"], ["--image_column x is for Parquet files"]),
    "made by another model": (
        ["--input", "a.tar", "--output", "done", "--model", "demo"],
        ["settings: it was made with --model ", "tiny.safetensors, but now --model is demo. Give"],
    ),
    "made with other columns": (
        [*GOOD[:2], "--output", "done", *GOOD[4:], "--columns", "a"],
        ["--columns was not given, but is now 'a=a:string'"],
    ),
    "made with another dtype": (
        [*DONE, "--embedding_dtype", "float16"],
        ["--embedding_dtype was 'float32', but is now 'float16'", "--overwrite"],
    ),
    "output is a file": ([*GOOD[:2], "--output", "a.tar", *GOOD[4:]], ["is a file", "must be a folder"]),
    "output is no text": ([*GOOD[:2], "--output", "o\udcff", *GOOD[4:]], ["cannot be printed", "rename it"]),
    "output holds something else": ([*GOOD[:2], "--output", "words", *GOOD[4:]], ["holds something else (a.xyz)"]),
    "output below a file": ([*GOOD[:2], "--output", "a.tar/out", *GOOD[4:]], ["cannot be written to"]),
    "output cannot be made": ([*GOOD[:2], "--output", "/proc/out", *GOOD[4:]], ["cannot be"]),
    "package not installed": (
        [*INPUT, "gs://bucket/*.tar"],
        ["needs a package that is not installed", "pip install -e '.[gcp]', or only gcsfs"],
    ),
    "unknown protocol": ([*INPUT, "nope://x/*.tar"], ["nope://x/*.tar cannot be opened"]),
    "unknown runner": ([*GOOD, "--runner", "NopeRunner"], ["NopeRunner"]),
    "no cuda": ([*GOOD, "--device", "cuda"], ["--device is cuda", "--device cpu"]),
    "parquet is none": ([*INPUT, "broken.parquet"], ["not readable as Parquet", "leave it out"]),
    "listing without a header": ([*INPUT, "plain.csv"], ["plain.csv has no column of URIs", "a.jpg", "first line"]),
    "listing not utf-8": ([*INPUT, "utf16.csv"], ["utf16.csv cannot be read", "UTF-8"]),
    "listing of lists": ([*INPUT, "lists.jsonl", "--caption_column", "captions"], ["captions[0]", "lists.jsonl"]),
    "listing column missing": ([*INPUT, "good.csv", "--columns", "a=x"], ["--columns x is not a column", "caption"]),
    "allow_uri": ([*INPUT, "good.csv", "--allow_uri", "example.com"], ["--allow_uri is 'example.com'", "https://"]),
    "allow_uri without a listing": (
        [*GOOD, "--allow_uri", "https://x/"],
        ["--allow_uri https://x/ is for Parquet files and listings"],
    ),
    "list of inputs missing": ([*INPUT, "@gone.txt"], ["--input @gone.txt cannot be read"]),
}
ENVIRONMENT = {"PYTHONPATH": ROOT, "PATH": "/usr/bin:/bin"}
RUN_ALL = """
import contextlib, io, json, sys
sys.modules["s3fs"] = None  # as if the extra were not installed
from pipelines import embed
found = {}
for name, argv in json.load(open("cases.json")).items():
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            found[name] = ["ran", str(embed.main(argv))]
    except ValueError as error:
        found[name] = ["refused", str(error)]
    except BaseException as error:
        found[name] = ["crashed", repr(error)]
print(json.dumps({"found": found, "torch": "torch" in sys.modules}))
"""


@pytest.fixture(scope="module")
def workplace(tmp_path_factory, tiny_checkpoint):
    path = tmp_path_factory.mktemp("wrong")
    make_tar(path / "a.tar", 2)
    make_parquet(path / "p.parquet", 2)
    pq.write_table(pa.table({"image": [b"1"], "captions": [["a", "b"]]}), path / "lists.parquet")
    for folder in ("empty", "words", "a", "b"):
        (path / folder).mkdir()
    (path / "tiny.safetensors").symlink_to(tiny_checkpoint)
    files = {
        "words/a.xyz": "hello hello hello",
        "blank.txt": " \n",
        "none.json": '{"classes": []}',
        "twice.txt": "cat\ndog\ncat",
        "slot.json": '{"classes": ["cat"], "templates": ["a photo"]}',
        "bad.json": '{"classes":\n  oops}',
        "field.json": '{"clases": [], "classes": ["a"]}',
        "a/t.txt": "cat",
        "b/t.txt": "dog",
        "two words.txt": "cat",
        "broken.parquet": "PAR1 no",
        "plain.csv": "a.jpg,a cat\n",
        "good.csv": "uri,caption\na.jpg,a cat\n",
        "lists.jsonl": '{"captions": ["a", "b"]}\n',
    }
    for name, text in files.items():
        (path / name).write_text(text)
    (path / "utf16.csv").write_bytes("uri,caption\n".encode("utf-16-le"))  # without a byte-order mark
    (path / "latin.txt").write_bytes(b"a\xff")
    torch.save({"weight": torch.ones(2)}, path / "other.pt")
    import safetensors.torch

    torch.save(safetensors.torch.load_file(tiny_checkpoint), path / "plain.pt")

    class Bomb:
        def __reduce__(self):
            return (print, ("boom",))

    torch.save({"a": Bomb()}, path / "code.pt")
    names = {"--input": "a.tar", "--output": "done", "--model": "tiny.safetensors"}
    assert embed.main([word for flag, name in names.items() for word in (flag, str(path / name))]) == 0
    return path


@pytest.fixture(scope="module")
def outcome(workplace, tmp_path_factory):
    """The outcome of all cases. They run in one process, because one for each would take minutes."""
    (workplace / "cases.json").write_text(json.dumps({name: argv for name, (argv, _) in CASES.items()}))
    before = snapshot(workplace)
    done = subprocess.run(
        [sys.executable, "-c", RUN_ALL],
        capture_output=True,
        text=True,
        cwd=workplace,
        timeout=100,
        env={
            "PYTHONPATH": ROOT,
            "PATH": "/usr/bin:/bin",
            "CLIP_CACHE": str(tmp_path_factory.mktemp("cache")),
            "HOME": "/nonexistent",
            "https_proxy": "http://127.0.0.1:9",  # nobody listens there: no network
        },
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]) | {"before": before, "after": snapshot(workplace)}


def snapshot(path):
    return sorted((str(p), p.lstat().st_mtime_ns) for p in path.rglob("*"))


@pytest.mark.parametrize("name", CASES)
def test_a_wrong_setting_is_one_sentence(name, outcome):
    if name == "no cuda" and torch.cuda.is_available():
        pytest.skip("there is CUDA here")
    verdict, sentence = outcome["found"][name]
    assert verdict == "refused", sentence
    for piece in CASES[name][1]:
        assert piece in sentence
    assert "\n" not in sentence.strip() and len(sentence) < 600, sentence


def test_nothing_was_written_and_torch_not_imported(outcome):
    assert outcome["before"] == outcome["after"]
    assert outcome["torch"] is False


@pytest.mark.parametrize("flag", [["--runner", "NopeRunner"], ["--btach_size", "3"]], ids=["runner", "flag"])
def test_the_command_exits_with_2_and_one_line_on_stderr(flag, workplace):
    done = command("pipelines.embed", *GOOD, *flag, cwd=workplace, env=ENVIRONMENT)
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: ")


def test_what_stands_behind_two_dashes_goes_to_beam_unseen(workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    argv = [*GOOD[:2], "--output", "done", *GOOD[4:], "--dry_run"]
    with pytest.raises(ValueError, match="--future_flag"):
        embed.main([*argv, "--future_flag=1"])
    assert embed.main([*argv, "--", "--future_flag=1"]) == 0


@pytest.mark.parametrize(
    "flags",
    [["--direct_num_workers", "0"], ["--runner", "directrunner"], ["--setup_file", f"{ROOT}/setup.py"]],
    ids=["one a core", "small letters", "setup file"],
)
def test_what_beam_takes_is_taken(flags, workplace, capsys, monkeypatch):
    monkeypatch.chdir(workplace)
    assert embed.main([*GOOD[:2], "--output", "done", *GOOD[4:], *flags]) == 0
    assert "nothing was left to do" in capsys.readouterr().out


def test_what_a_name_would_do_to_the_terminal_is_shown_instead(workplace):
    done = command("pipelines.embed", *INPUT, "gone\n\x1b[31m.tar", cwd=workplace, env=ENVIRONMENT)
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert r"--input gone\n\x1b[31m.tar matches nothing" in line
