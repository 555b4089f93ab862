"""search: exact rows for words, pictures, samples and embeddings; the same on every runner, and what is refused."""

import base64
import importlib
import inspect
import io
import json
import re
import shutil
from pathlib import Path

import apache_beam as beam
import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from conftest import command, make_tar, pair, picture, write_tar
from PIL import Image

from benchmarks.datasets import write_rows
from clip_transforms import Dataset, SearchEmbeddings, clip, embed_shards, filter_embeddings, search_embeddings
from clip_transforms.pages.sheets import WHY
from pipelines import search
from schemas.results import results_schema

# Commands in this process; those in a process of their own, and the transforms, take Beam.
pytestmark = pytest.mark.usefixtures("without_beam")

D = 16
SIZES = [700, 0, 333, 40]


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def vectors(n, seed, dtype="float32", nulls=0.1):
    """Vectors with copies of each other and nulls among them."""
    rng = np.random.default_rng(seed)
    made = unit(rng.normal(size=(n, D))).astype(dtype)
    made[2::5] = made[rng.integers(0, n, len(made[2::5]))]
    return [None if r < nulls else v for r, v in zip(rng.random(n), made, strict=True)]


def make(folder, dtype="float32"):
    n = sum(SIZES)
    columns = {"image_embedding": vectors(n, 1, dtype), "caption_embedding": vectors(n, 2, dtype)}
    for i in range(n):
        if columns["image_embedding"][i] is None and columns["caption_embedding"][i] is None:
            columns["image_embedding"][i] = columns["image_embedding"][0]
    columns |= {"caption": [f"caption {i}" for i in range(n)], "width": [i % 7 for i in range(n)]}
    ends = np.cumsum([0, *SIZES])
    parts = [{k: v[a:b] for k, v in columns.items()} for a, b in zip(ends[:-1], ends[1:], strict=True)]
    labels = [{"label": ["cat", "dog"] * (s // 2) + ["cat"] * (s % 2), "probability": [0.5] * s} for s in SIZES]
    # The order of the shards is not that of the parts, and two parts are of one shard.
    shards = ["/shards/b.tar", "/shards/c.tar", "/shards/a.parquet", "/shards/a.parquet"]
    for part, shard in zip(parts, shards, strict=True):
        part |= {"shard": shard, "d": D}
    parts[3]["row"] = np.arange(SIZES[3]) + SIZES[2]
    return write_rows(folder, parts, {"animals": labels}, embedding_dtype=dtype)


@pytest.fixture(scope="module", params=["float32", "float16"])
def dataset(request, tmp_path_factory):
    return make(tmp_path_factory.mktemp(request.param) / "out", request.param)


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    return make(tmp_path_factory.mktemp("single") / "out")


def plain(dataset, queries, column="image_embedding", k=10, keep=lambda row: True):
    """What a search must find: for each query (shard, row, similarity) of its best rows, by one NumPy product."""
    columns = ["shard", "row", "width", column]
    rows = [row for row in Dataset.open(dataset).to_table(columns).to_pylist() if row[column] is not None and keep(row)]
    rows.sort(key=lambda row: (row["shard"], row["row"]))
    stored = np.array([row[column] for row in rows], np.float64).reshape(-1, D)
    products = (np.asarray(queries, np.float64) @ stored.T).astype(np.float32)
    best = np.argsort(-products, axis=1, kind="stable")[:, :k]
    names = [(row["shard"], row["row"]) for row in rows]
    found = zip(best.tolist(), np.take_along_axis(products, best, axis=1).tolist(), strict=True)
    return [[(*names[i], value) for i, value in zip(*of, strict=True)] for of in found]


def found(table):
    """The rows of results in the form of `plain`."""
    columns = (table[name].to_pylist() for name in ("shard", "row", "similarity"))
    rows, ranks = list(zip(*columns, strict=True)), table["rank"].to_numpy()
    edges = np.append(np.flatnonzero(ranks == 1), len(rows)).tolist()
    assert ranks.tolist() == [rank + 1 for a, b in zip(edges, edges[1:], strict=False) for rank in range(b - a)]
    return [rows[a:b] for a, b in zip(edges, edges[1:], strict=False)]


def query_file(folder, count, seed=5):
    queries = unit(np.random.default_rng(seed).normal(size=(count, D)))
    pq.write_table(pa.table({"embedding": list(queries)}), path := folder / "queries.parquet")
    return path, queries


def files(folder):
    paths = [path for path in Path(folder).rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


@pytest.mark.parametrize("count", [1, 100, pytest.param(10_000, marks=pytest.mark.slow)])  # four seconds each
def test_it_is_exact_with_ties_by_shard_and_row(dataset, tmp_path, count):
    path, queries = query_file(tmp_path, count)
    results = search_embeddings(dataset, queries=path, top_k=10)
    assert found(results) == plain(dataset, queries)
    assert results.schema == results_schema() and results["query"][-1].as_py() == str(count - 1)


def test_ten_thousand_queries_are_exact(single, tmp_path):
    path, queries = query_file(tmp_path, 10_000)
    assert found(search_embeddings(single, queries=path, top_k=3)) == plain(single, queries, k=3)


@pytest.mark.parametrize("against", ["image", "caption", "both"])
def test_what_is_compared(single, tmp_path, against):
    path, queries = query_file(tmp_path, 7)
    results = search_embeddings(single, queries=path, against=against, top_k=3000)
    if against != "both":
        assert found(results) == plain(single, queries, f"{against}_embedding", k=3000)
        return
    image, caption = (
        [{row[:2]: row[2] for row in of} for of in plain(single, queries, f"{name}_embedding", k=3000)]
        for name in ("image", "caption")
    )
    for of, i, c in zip(found(results), image, caption, strict=True):
        assert {row[:2] for row in of} == i.keys() & c.keys()
        assert [row[2] for row in of] == pytest.approx([(i[row[:2]] + c[row[:2]]) / 2 for row in of], abs=1e-6)


def test_where_and_selections_narrow_the_rows(single, tmp_path):
    path, queries = query_file(tmp_path, 20)
    filter_embeddings(single, tmp_path / "kept", where="width < 4")
    where = "animals.label = 'cat'"
    results = search_embeddings(single, queries=path, where=where, selection=tmp_path / "kept")
    labels = {
        (row["shard"], row["row"]): row["animals.label"]
        for row in Dataset.open(single).to_table(labels="animals").to_pylist()
    }
    keep = lambda row: row["width"] < 4 and labels[row["shard"], row["row"]] == "cat"  # noqa: E731
    assert found(results) == plain(single, queries, keep=keep)
    assert results["labels"][0].as_py() == [("animals", {"label": "cat", "probability": 0.5})]
    pq.write_table(pa.table({"shard": ["/shards/b.tar"] * 2, "row": [3, 4]}), tmp_path / "mine.parquet")
    some = found(search_embeddings(single, queries=path, selection=tmp_path / "mine.parquet"))
    assert some == plain(single, queries, keep=lambda row: row["shard"] == "/shards/b.tar" and row["row"] in (3, 4))


def test_every_runner_writes_the_same_bytes(single, service, tmp_path):
    path, _ = query_file(tmp_path, 9)
    asked = {"queries": path, "where": "width > 1", "top_k": 4}
    search_embeddings(single, tmp_path / "plain", **asked)
    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        _ = pipeline | SearchEmbeddings(single, tmp_path / "beam", **asked)
    argv = ["--input", single, "--queries", path, "--where", "width > 1", "--top_k", "4"]
    done = command("pipelines.search", *argv, "--output", tmp_path / "portable", *service)
    assert done.returncode == 0, done.stderr
    assert "36 results for 9 queries" in done.stdout and "with those of 4 more" in done.stdout
    reference = files(tmp_path / "plain")
    assert sorted(reference) == ["_SUCCESS", "_command.json", "results.parquet", "search.json"]
    assert files(tmp_path / "beam") == files(tmp_path / "portable") == reference


@pytest.mark.parametrize("rows", [1, 100, 1 << 20], ids=lambda n: f"groups of {n}")
def test_the_bytes_do_not_depend_on_how_parts_are_grouped(single, tmp_path, monkeypatch, rows):
    path, queries = query_file(tmp_path, 9)
    for name in ("_FEWEST", "_MOST"):
        monkeypatch.setattr(f"clip_transforms.run.search_files.{name}", rows)
    assert found(search_embeddings(single, queries=path)) == plain(single, queries)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory, tiny_checkpoint):
    """A real dataset of two tars that share keys, made by the tiny model."""
    folder = tmp_path_factory.mktemp("pictures")
    make_tar(folder / "a.tar", 6)
    samples = [*pair("000001", 41), *pair("only text", 42)[1:], *pair("only image", 43, caption=None)]
    write_tar(folder / "b.tar", samples)
    (folder / "animals.txt").write_text("cat\ndog\n")
    spec = clip.ClipSpec(tiny_checkpoint, precision="fp32")
    embed_shards([folder / "a.tar", folder / "b.tar"], folder / "out", spec, [folder / "animals.txt"])
    return folder


def test_words_find_the_captions_that_say_them(pictures):
    results = search_embeddings(pictures / "out", text="picture number 3", against="caption", top_k=2).to_pylist()
    assert (results[0]["key"], results[0]["caption"]) == ("000003", "picture number 3")
    assert results[0]["similarity"] == pytest.approx(1, abs=1e-6) and results[1]["similarity"] < 1


def test_words_are_embedded_as_the_model_alone_does(pictures, tiny_checkpoint):
    results = search_embeddings(pictures / "out", text=["a cat", "a dog"], top_k=8).to_pylist()
    model = clip.load(tiny_checkpoint, "cpu", precision="fp32")
    rows, images = Dataset.open(pictures / "out").embeddings("image")
    for text, query in zip(("a cat", "a dog"), model.embed_captions(["a cat", "a dog"]).numpy(), strict=True):
        own = {(row["shard"], row["row"]): row["similarity"] for row in results if row["query"] == text}
        places = [(row["shard"], row["row"]) for row in rows.to_pylist()]
        wanted = dict(zip(places, images @ query, strict=True))
        assert own.keys() == wanted.keys() and len(own) == 8
        assert own == {row: pytest.approx(value, abs=1e-6) for row, value in wanted.items()}


def test_a_text_that_is_too_long_is_cut_with_a_warning(pictures, caplog):
    search_embeddings(pictures / "out", text=["a cat " * 50, "a cat", "dog " * 99])
    assert re.search("the text 'a cat a cat .*…' is cut at 77 tokens, and 1 other", caplog.text)


def test_a_picture_finds_itself(pictures, tmp_path):
    (tmp_path / "mine.jpg").write_bytes(picture(4))
    results = search_embeddings(pictures / "out", image=tmp_path / "mine.jpg", top_k=2).to_pylist()
    assert results[0]["key"] == "000004" and results[0]["similarity"] == pytest.approx(1, abs=1e-5)
    assert results[0]["query"] == str(tmp_path / "mine.jpg")


@pytest.mark.parametrize(
    "towers, asked", [({"text"}, {"text": "a cat"}), ({"text", "visual"}, {"image": True}), (set(), {"like": "000003"})]
)
def test_only_the_towers_that_are_needed_are_loaded(pictures, tmp_path, monkeypatch, towers, asked):
    import clip_transforms.clip.checkpoints as checkpoints

    loaded, real = set(), checkpoints.load_checkpoint

    def load(*args, **kwargs):
        model = real(*args, **kwargs)
        loaded.update(name for name in ("text", "visual") if getattr(model, name) is not None)
        return model

    monkeypatch.setattr(checkpoints, "load_checkpoint", load)
    (tmp_path / "mine.jpg").write_bytes(picture(4))
    search_embeddings(pictures / "out", **({"image": tmp_path / "mine.jpg"} if "image" in asked else asked))
    assert loaded == towers


def test_a_sample_finds_itself_first(pictures):
    results = search_embeddings(pictures / "out", like=["000003", f"{pictures}/b.tar#0"], top_k=1).to_pylist()
    assert [(row["query"], row["key"], row["shard"][-5:]) for row in results] == [
        ("000003", "000003", "a.tar"),
        (f"{pictures}/b.tar#0", "000001", "b.tar"),
    ]
    assert [row["similarity"] for row in results] == [pytest.approx(1, abs=1e-6)] * 2


def test_a_file_of_queries(pictures, single, tmp_path):
    (tmp_path / "words.txt").write_text("a cat\n\n  \na dog\n")
    asked = search_embeddings(pictures / "out", queries=tmp_path / "words.txt", top_k=1)
    assert asked["query"].to_pylist() == ["a cat", "a dog"]
    (tmp_path / "words.csv").write_text('text,other\n"a cat",1\na dog,2\n')
    assert search_embeddings(pictures / "out", queries=tmp_path / "words.csv", top_k=1) == asked
    long = [3.0] * D
    (tmp_path / "vectors.csv").write_text(f'text,embedding\nmine,"{long}"\n')
    results = search_embeddings(single, queries=tmp_path / "vectors.csv")
    assert set(results["query"].to_pylist()) == {"mine"}
    assert found(results) == plain(single, unit(np.array([long])))


@pytest.mark.parametrize("value", [None, float("nan"), float("inf")])
def test_a_query_that_is_not_finite_is_one_sentence(single, tmp_path, value):
    pq.write_table(pa.table({"embedding": [[*[1.0] * (D - 1), value]]}), tmp_path / "q.parquet")
    with pytest.raises(ValueError, match="is an embedding that holds a null, NaN or infinity; leave it out"):
        search_embeddings(single, queries=tmp_path / "q.parquet")


def test_a_long_list_is_in_the_file_and_its_beginning_is_printed(single, tmp_path, capsys, without_beam):
    first = Dataset.open(single).to_table(["shard", "row"]).to_pylist()[0]
    argv = ["--input", str(single), "--like", f"{first['shard']}#{first['row']}", "--top_k", "50"]
    assert search.main([*argv, "--output", str(tmp_path / "found")]) == 0
    printed = capsys.readouterr().out
    assert "   … and 30 more\n" in printed and len(printed.splitlines()) < 30
    assert search.main(argv) == 0
    assert len([line for line in capsys.readouterr().out.splitlines() if line[:4].strip().isdigit()]) == 50


def test_a_longer_list_than_there_are_rows_is_all_rows_and_a_line(pictures, capsys):
    argv = ["--input", str(pictures / "out"), "--text", "a cat", "--text", "a dog", "--top_k", "100"]
    assert search.main(argv) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "a cat" and said[1].split() == ["similarity", "key", "from", "caption", "labels"]
    assert said[2].split()[0] == "1" and said[10] == ""
    assert said[-2:] == [
        "16 results for 2 queries; searched: 8 rows with an image embedding; 1 without",
        "note: --top_k 100 is more than there are; every row was found",
    ]


def test_nothing_found_is_a_valid_output_and_a_line(pictures, tmp_path, capsys, without_beam):
    argv = ["--input", str(pictures / "out"), "--text", "a cat", "--where", "width > 10000", "--output"]
    assert search.main([*argv, str(tmp_path / "found")]) == 0
    assert "note: nothing was found" in capsys.readouterr().out
    assert duckdb.sql(f"FROM '{tmp_path}/found/results.parquet'").fetchall() == []
    assert (tmp_path / "found" / "_SUCCESS").exists()


def test_a_hostile_caption_does_not_control_the_terminal(tmp_path, capsys):
    caption = "\x1b[31mred\nnext\u202e"
    write_rows(tmp_path / "out", [{"image_embedding": np.eye(1, 4), "caption": [caption], "key": ["\x1b]0;x\x07"]}])
    assert search.main(["--input", str(tmp_path / "out"), "--like", "/shards/0.tar#0"]) == 0
    said = capsys.readouterr().out
    assert "\\x1b[31mred next\\u202e" in said and "\x1b" not in said and "\u202e" not in said


def test_rows_without_an_embedding_are_no_results_and_no_fault(tmp_path):
    """Of one part no row has an embedding, and of another none of the wanted rows."""
    some = {"image_embedding": [*unit(np.eye(4)[:2]), None], "width": [1, 2, 3], "d": 4}
    none = {"image_embedding": [None] * 2, "width": [4, 5], "d": 4}
    out = write_rows(tmp_path / "out", [some, none, some])
    table = pa.table({"embedding": [[1.0, 0, 0, 0]]})
    pq.write_table(table, tmp_path / "q.parquet")
    for number, (where, found) in enumerate(((None, 4), ("width <> 2", 2), ("width > 2", 0), ("width = 5", 0))):
        folder = tmp_path / f"found-{number}"
        search_embeddings(out, folder, queries=tmp_path / "q.parquet", where=where)
        assert pq.read_table(folder / "results.parquet").num_rows == found, where


HOSTILE = '</bdi><script>alert(1)</script><img src=x onerror="alert(2)">'


def test_a_picture_without_a_caption_is_named_once_under_it(tmp_path, tiny_checkpoint):
    write_tar(tmp_path / "a.tar", [("alone.jpg", picture(1)), *pair("both", 2, caption="two of them")])
    embed_shards(tmp_path / "a.tar", tmp_path / "out", clip.ClipSpec(tiny_checkpoint, precision="fp32"))
    search_embeddings(tmp_path / "out", text="a", html=tmp_path / "page.html")
    cards = re.findall("</?bdi[^>]*>([^<]+)</bdi>", (tmp_path / "page.html").read_text())
    assert [cards.count(text) for text in ("alone", "both", "two of them")] == [1, 1, 1]


def test_the_page_shows_pictures_and_escapes_hostile_captions(tmp_path, tiny_checkpoint, capsys):
    samples = [m for i in range(3) for m in pair(f"{i}", i, caption=HOSTILE)]
    write_tar(tmp_path / "a.tar", samples)
    write_tar(tmp_path / "b.tar", pair("words", 7, caption="gone")[0:2])
    spec = clip.ClipSpec(tiny_checkpoint, precision="fp32")
    embed_shards([tmp_path / "a.tar", tmp_path / "b.tar"], tmp_path / "out", spec)
    (tmp_path / "b.tar").unlink()
    argv = ["--input", str(tmp_path / "out"), "--text", HOSTILE, "--html", str(tmp_path / "page.html")]
    assert search.main(argv) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[-1].startswith(f"{tmp_path}/page.html: open it in a browser; 1 picture could not be read again")
    page = (tmp_path / "page.html").read_text()
    assert "<script" not in page and "<img src=x" not in page and "onerror=&#34;" in page
    pictures = [base64.b64decode(data) for data in re.findall(r"data:image/webp;base64,([^\"]+)", page)]
    assert [Image.open(io.BytesIO(data)).size for data in pictures] == [(128, 128)] * 3
    assert WHY["vanished"] in page and "words" in page and "default-src 'none'" in page
    argv[-1] = str(tmp_path / "new" / "page.html")
    for _ in range(2):  # a page is made anew each time
        assert search.main([*argv, "--output", str(tmp_path / "found")]) == 0
        said = capsys.readouterr().out
        assert "page.html: open it in a browser" in said and "goes on" not in said
    (tmp_path / "mine.html").write_text("mine")
    for name, message in (("mine.html", "that this program did not write"), ("a.jpg", "must end in .html")):
        with pytest.raises(ValueError, match=message):
            search.main([*argv[:-1], str(tmp_path / name)])
    with pytest.raises(ValueError, match="lies in the dataset"):
        search.main([*argv[:-1], str(tmp_path / "out" / "page.html")])
    with pytest.raises(ValueError, match="--allow_uri is for the pictures of --html"):
        search.main([*argv[:-2], "--allow_uri", "https://"])


def test_the_same_command_again_does_nothing_and_another_is_refused(pictures, tmp_path, capsys, without_beam):
    argv = ["--input", str(pictures / "out"), "--output", str(tmp_path / "found"), "--like", "000003"]
    assert search.main(argv) == 0
    first, said = files(tmp_path / "found"), capsys.readouterr().out
    assert search.main(argv) == 0 and files(tmp_path / "found") == first
    assert capsys.readouterr().out == said + "nothing was left to do\n"
    with pytest.raises(ValueError, match="made by another command: like was .*000003.*, now .*000004.*--overwrite"):
        search.main([*argv[:-1], "000004"])
    (tmp_path / "found" / "results.parquet").unlink()
    assert search.main(argv) == 0 and files(tmp_path / "found") == first
    assert search.main([*argv[:-1], "000004", "--overwrite"]) == 0
    assert pq.read_table(tmp_path / "found" / "results.parquet")["key"][0].as_py() == "000004"


def test_the_function_and_the_transform_take_the_same_arguments_by_name():
    function, transform = (inspect.signature(call).parameters for call in (search_embeddings, SearchEmbeddings))
    assert {**function, "output": None} == {**transform, "output": None}
    assert all(f"\n    {name}: " in inspect.getdoc(search_embeddings) for name in function)
    with pytest.raises(TypeError, match="unexpected .* 'txt'"):
        search_embeddings("out", txt="a cat")


WRONG = {
    "no query": ([], "nothing is asked for; give --text, --image, --like or --queries"),
    "empty text": (["--text", " "], "--text is an empty text"),
    "unknown key": (["--like", "nobody"], r"--like nobody is no key of .*SHARD#ROW"),
    "unknown row": (["--like", "{folder}/a.tar#77"], "--like .*a.tar#77 is no key.*; its columns key"),
    "a file": (["--like", "{folder}/a.tar"], "no SHARD#ROW; it is a file, so give --image .*/a.tar"),
    "key of two": (["--like", "000001"], r"key of 2 samples in .*; name one .*a.tar#1' or '.*b.tar#0'"),
    "no such embedding": (["--like", "only text"], "--like only text lacks an embedding of its image"),
    "no image": (["--image", "{folder}/none.jpg"], "--image .*none.jpg is no file"),
    "not an image": (["--image", "{folder}/animals.txt"], "--image .*animals.txt is no picture"),
    "no queries": (["--queries", "{folder}/none.txt"], "--queries .*none.txt is no file"),
    "empty queries": (["--queries", "{folder}/empty.txt"], "empty.txt is empty"),
    "other columns": (["--queries", "{folder}/other.csv"], "must have a column text or embedding, but it has a, b"),
    "other length": (["--queries", "{folder}/short.csv"], "has 2 values in row 0 of embedding, .* have 48"),
    "zero": (["--queries", "{folder}/zero.csv"], "--queries .*zero.csv: 0 is an embedding of length 0"),
    "k": (["--text", "a", "--top_k", "0"], "--top_k is 0, but"),
    "against": (["--text", "a", "--against", "pixels"], "--against is 'pixels', but it must be image, caption or both"),
    "column": (["--text", "a", "--where", "widht > 3"], "widht.*width"),
    "selection": (["--text", "a", "--selection", "{folder}"], "is no selection"),
    "model for nothing": (["--like", "000003", "--model", "demo"], "--model demo embeds texts and pictures"),
    "another model": (["--text", "a", "--model", "demo"], "--model demo is given, but .* was made with --model"),
    "overwrite what": (["--text", "a", "--overwrite"], "--overwrite does nothing without --output"),
    "what would be done": (["--text", "a", "--dry_run"], "--dry_run does nothing without --output"),
    "runner for what": (
        ["--text", "a", "--direct_num_workers", "2"],
        "--direct_num_workers does nothing without --out",
    ),
    "no dataset": (["--text", "a", "--input", "{folder}"], "is not a dataset of this program"),
}


@pytest.mark.parametrize("flags, message", WRONG.values(), ids=WRONG.keys())
def test_wrong_input_is_one_sentence_and_nothing_is_written(pictures, flags, message, tmp_path):
    (pictures / "empty.txt").write_text("\n")
    (pictures / "other.csv").write_text("a,b\n1,2\n")
    (pictures / "short.csv").write_text('embedding\n"[1, 2]"\n')
    (pictures / "zero.csv").write_text(f'embedding\n"{[0.0] * 48}"\n')
    before = files(pictures / "out")
    flags = [flag.format(folder=pictures) for flag in flags]
    with pytest.raises(ValueError, match=message) as caught:
        search.main(["--input", str(pictures / "out"), *flags])
    assert "\n" not in str(caught.value)
    if "without" not in message:
        with pytest.raises(ValueError, match=message):
            search.main(["--input", str(pictures / "out"), *flags, "--output", str(tmp_path / "found")])
    assert files(pictures / "out") == before and not (tmp_path / "found").exists()


def test_the_command_ends_with_2_and_one_line(pictures):
    done = command("pipelines.search", "--input", pictures / "out", "--like", "nobody")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: --like nobody is no key") and done.stderr.count("\n") == 1


@pytest.fixture
def copy(single, tmp_path):
    return Path(shutil.copytree(single, tmp_path / "copy"))


def test_an_unfinished_dataset_is_searched_with_a_warning(copy, caplog):
    (copy / "_SUCCESS").unlink()
    assert search_embeddings(copy, like="/shards/b.tar#0", top_k=1).num_rows == 1
    assert "has no _SUCCESS" in caplog.text


def test_labels_that_are_missing_are_left_out_with_a_warning_but_not_from_where(copy, caplog):
    (copy / "labels" / "animals" / "part-00002.parquet").unlink()
    results = search_embeddings(copy, like="/shards/b.tar#0", top_k=1)
    assert results["labels"].to_pylist() == [[]] and "the results are without these labels" in caplog.text
    with pytest.raises(ValueError, match="has no labels/animals for 1 of 4 parts"):
        search_embeddings(copy, like="/shards/b.tar#0", where="animals.label = 'cat'")


def test_two_fingerprints_are_refused(copy):
    made = json.loads((copy / "_dataset.json").read_text())
    made["settings"]["precision"] = "other"
    (copy / "_dataset.json").write_text(json.dumps(made))
    with pytest.raises(ValueError, match="an --overwrite was interrupted"):
        search_embeddings(copy, like="/shards/b.tar#0")


def test_captions_alone_are_searched_without_being_asked_for(tmp_path):
    write_rows(tmp_path / "out", [{"caption_embedding": np.eye(3, 4), "caption": list("abc")}])
    results = search_embeddings(tmp_path / "out", like="000001", top_k=1)
    assert results["caption"].to_pylist() == ["b"] and results["labels"].to_pylist() == [[]]
    with pytest.raises(ValueError, match="--against is image, but .* holds no image embeddings; --against caption"):
        search_embeddings(tmp_path / "out", like="000001", against="image")


def test_an_empty_dataset_gives_an_empty_result(tmp_path):
    write_rows(tmp_path / "out", [{"image_embedding": np.empty((0, 4)), "d": 4}])
    pq.write_table(pa.table({"embedding": [[1.0, 0, 0, 0]]}), tmp_path / "q.parquet")
    assert search_embeddings(tmp_path / "out", tmp_path / "found", queries=tmp_path / "q.parquet").num_rows == 0


def test_a_part_that_is_replaced_meanwhile_is_an_error(single, copy, monkeypatch, tmp_path, capsys):
    steps = importlib.import_module("clip_transforms.run.search_steps")
    real = steps.read_vectors

    def read(*args):
        write_rows(tmp_path / "new", [{"image_embedding": unit(np.ones((3, D)))}])
        shutil.copy(tmp_path / "new/embeddings/part-00000.parquet", copy / "embeddings/part-00000.parquet")
        yield from real(*args)

    monkeypatch.setattr(steps, "read_vectors", read)
    assert search.main(["--input", str(copy), "--like", "/shards/a.parquet#0"]) == 1
