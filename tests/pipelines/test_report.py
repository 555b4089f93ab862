"""Report: every number on the page is in the Parquet, every text is only a text, and nothing is loaded."""

import base64
import hashlib
import json
import re

import apache_beam as beam
import duckdb
import pytest
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from conftest import command, make_folder, pair, picture, write_tar
from html_page import Page, whole
from test_runners import TWO_PROCESSES

from clip_transforms import (
    ClipSpec,
    ReportEmbeddings,
    Taxonomy,
    deduplicate_embeddings,
    embed_shards,
    filter_embeddings,
    report_embeddings,
)

# Commands in this process; those in a process of their own, and the transforms, take Beam.
pytestmark = pytest.mark.usefixtures("without_beam")


@pytest.fixture(scope="module")
def made(tmp_path_factory, tiny_checkpoint):
    """A dataset of two tars and a folder with everything that a page tells of, and two selections."""
    folder = tmp_path_factory.mktemp("made")
    for name, first in (("a", 0), ("b", 20)):
        members = [m for i in range(first, first + 20) for m in pair(f"{i:06d}", i)]
        members += pair(f"long{name}", 50 + first, caption="many words " * 60)
        members += pair(f"bytes{name}", 51 + first, caption=b"gr\xfcn")
        members += [(f"broken{name}.jpg", picture(1)[:300]), (f"broken{name}.txt", b"a broken picture")]
        members += [(f"alone{name}.jpg", picture(60, size=(300, 200)))]
        write_tar(folder / f"{name}.tar", [*members, *pair(f"again{name}", first + 2)])
    make_folder(folder / "photos", 7, first=2)
    (folder / "colors.txt").write_text("red\nblue\nno colour at all\n")
    (folder / "shapes.txt").write_text("circle\nsquare\n")
    taxonomies = [Taxonomy.load(str(folder / f"{name}.txt")) for name in ("colors", "shapes")]
    inputs = [str(folder / name) for name in ("a.tar", "b.tar", "photos")]
    embed_shards(inputs, folder / "out", ClipSpec(tiny_checkpoint, precision="fp32"), taxonomies)
    filter_embeddings(folder / "out", folder / "kept", where="row < 9")
    deduplicate_embeddings(folder / "out", folder / "unique")
    return folder


@pytest.fixture(scope="module")
def reference(made, tmp_path_factory):
    page = tmp_path_factory.mktemp("page") / "report.html"
    report_embeddings(made / "out", page, duplicates=made / "unique")
    return page


@pytest.fixture(scope="module")
def page(reference):
    return Page(reference.read_bytes())


@pytest.fixture(scope="module")
def sql(made):
    return queries(made)


def queries(made):
    connection = duckdb.connect()
    for name in ("embeddings", "rejects", "labels/colors", "labels/shapes"):
        view = name.rpartition("/")[2]
        connection.execute(f"CREATE VIEW {view} AS SELECT * FROM '{made}/out/{name}/*.parquet'")
    return lambda query: connection.execute(query).fetchall()


def titles(cards):
    return [title for title, _, _ in cards]


def test_the_balance_is_what_the_parquet_holds(page, sql):
    pattern = (
        r"Of the (image|caption)s of (\d+) samples, (\d+) were embedded, (\d+) were rejected, and (\d+) \w+ absent"
    )
    found = re.findall(pattern, page.text("what"))
    assert [modality for modality, *_ in found] == ["image", "caption"]
    for modality, *numbers in found:
        samples, embedded, rejected, absent = map(int, numbers)
        assert sql(f"SELECT count({modality}_embedding) FROM embeddings") == [(embedded,)]
        assert sql(f"SELECT count(*) FROM rejects WHERE modality = '{modality}'") == [(rejected,)]
        assert samples == embedded + rejected + absent == 57


@pytest.mark.parametrize("order", ["DESC", "ASC"], ids=["surest", "least sure"])
def test_the_sheets_show_the_surest_and_the_least_sure_of_each_label(page, sql, order):
    shown = iter(page.cards["sheets"])
    for taxonomy in ("colors", "shapes"):
        classes = sql(
            f"SELECT label, count(*) AS n FROM {taxonomy} WHERE label IS NOT NULL GROUP BY 1 ORDER BY n DESC, 1"
        )
        for name, number in classes:
            assert f"{name} {number} picture" in page.text("sheets")
            for way, most in (("DESC", min(5, (number + 1) // 2)), ("ASC", min(5, number // 2))):
                rows = sql(
                    f"SELECT key, shard, row, probability FROM {taxonomy} WHERE label = '{name}' "
                    f"ORDER BY probability {way}, shard, row LIMIT {most}"
                )
                cards = [next(shown) for _ in rows]
                if way == order:
                    assert [(t, c.strip()) for t, _, c in cards] == [(title(*row[:3]), f"{row[3]:.3f}") for row in rows]


def title(key, shard, row):
    return f"{key} ({shard.rpartition('/')[2] or shard}, row {row})"


def test_the_best_and_the_worst_pairs_are_those_of_the_parquet(page, sql):
    shown = page.cards["sheets"][-24:]
    for way, cards in (("DESC", shown[:12]), ("ASC", shown[12:])):
        rows = sql(
            "SELECT key, shard, row, clip_score, caption FROM embeddings WHERE clip_score IS NOT NULL "
            f"ORDER BY clip_score {way}, shard, row LIMIT 12"
        )
        assert titles(cards) == [title(*row[:3]) for row in rows]
        assert [caption.split()[0] for _, _, caption in cards] == [f"{round(row[3], 3) + 0.0:.3f}" for row in rows]
        assert [alt.removesuffix("…") in caption for (_, alt, _), (*_, caption) in zip(cards, rows, strict=True)]


def test_what_a_threshold_keeps_is_what_a_query_keeps(page, sql):
    (with_score, without) = sql("SELECT count(clip_score), count(*) - count(clip_score) FROM embeddings")[0]
    assert f"{with_score} rows have a clip_score; {without} rows lack one" in page.text("scores")
    data = page.json("kept-data")
    assert data["rows"] == with_score + without and len(data["kept"]) == data["high"] - data["low"] + 1
    for place, kept in enumerate(data["kept"]):
        at = f"{(data['low'] + place) / 1000:.3f}"
        assert sql(f"SELECT count(*) FROM embeddings WHERE clip_score >= {at}::FLOAT") == [(kept,)], at
    cuts, bars = page.tables["scores"]
    for _, at, kept, share in cuts[1:]:
        assert sql(f"SELECT count(*) FROM embeddings WHERE clip_score >= {at}::FLOAT") == [(whole(kept),)]
        assert share == f"{100 * whole(kept) / data['rows']:.1f}\N{NO-BREAK SPACE}%"
    for low, high, number in bars[1:]:
        condition = f"clip_score >= {low}::FLOAT AND clip_score < {high}::FLOAT"
        assert sql(f"SELECT count(*) FROM embeddings WHERE {condition}") == [(whole(number),)]
    assert sum(whole(number) for *_, number in bars[1:]) == with_score


def test_the_command_of_the_slider_keeps_what_the_page_says(page, made, tmp_path):
    import shlex

    from pipelines import filter as filter_command

    (line,) = re.findall(r"python -m pipelines.filter .* >= -?[\d.]+'", page.text("scores"))
    argv = shlex.split(line)[3:]
    argv[argv.index("kept")] = str(tmp_path / "kept")
    assert filter_command.main(argv) == 0
    kept = json.loads((tmp_path / "kept" / "selection.json").read_text())["counts"]["kept"]
    assert f"keeps {kept} of" in page.text("scores")


def test_labels_are_counted_as_a_query_counts_them(page, sql):
    for taxonomy, table in zip(("colors", "shapes"), page.tables["labels"], strict=True):
        rows = sql(
            f"SELECT label, count(*), 100 * count(*) FILTER (probability >= 0.9) / count(*) FROM {taxonomy} "
            "WHERE label IS NOT NULL GROUP BY 1 ORDER BY 2 DESC, 1"
        )
        assert table[1:] == [[name, str(n), f"{sure:.1f}\N{NO-BREAK SPACE}%"] for name, n, sure in rows]
    never = {"red", "blue", "no colour at all"} - {row[0] for row in page.tables["labels"][0][1:]}
    assert all(name in page.text("labels").partition("Never the best label:")[2] for name in never)


def test_rejects_are_counted_and_shown(page, sql):
    (table,) = page.tables["rejects"]
    rows = sql("SELECT modality, stage, reason, count(*) FROM rejects GROUP BY ALL ORDER BY 4 DESC, 1, 2, 3")
    assert len(rows) == 2
    for (what, number, examples), (modality, stage, reason, count) in zip(table[1:], rows, strict=True):
        assert what.startswith(f"{modality}: {reason} ({stage})") and number == str(count)
        named = sql(f"SELECT key, message FROM rejects WHERE reason = '{reason}' ORDER BY shard, row LIMIT 3")
        assert all(key in examples and message in examples for key, message in named)


def test_sizes_and_captions_are_counted_as_a_query_counts_them(page, sql):
    sizes, tokens = page.tables["sizes"]
    for name, number in sizes[1:]:
        low, _, high = name.partition(" to ")
        condition = f"least(width, height) BETWEEN {low} AND {high}"
        assert sql(f"SELECT count(*) FROM embeddings WHERE {condition}") == [(whole(number),)]
    assert sum(whole(row[-1]) for row in sizes[1:]) == sql("SELECT count(width) FROM embeddings")[0][0]
    (enlarged,) = sql("SELECT count(*) FROM embeddings WHERE least(width, height) < 32")[0]
    assert f"{enlarged} pictures are smaller than that" in page.text("sizes")
    counted = dict(sql("SELECT caption_tokens, count(*) FROM embeddings WHERE caption_tokens IS NOT NULL GROUP BY 1"))
    assert {int(n): whole(number) for n, number in tokens[1:] if number != "0"} == counted
    low, high, median, cut = sql(
        "SELECT min(caption_tokens), max(caption_tokens), quantile_disc(caption_tokens, 0.5), "
        "count(*) FILTER (caption_truncated) FROM embeddings"
    )[0]
    assert f"have {low} to {high} tokens" in page.text("sizes") and f"the median is {median}" in page.text("sizes")
    assert cut == 2 and "2 captions were cut" in page.text("sizes")


def test_duplicates_are_those_of_the_selection(page, made, sql):
    groups = sql(
        f"SELECT count(*) AS n, list(key ORDER BY kept DESC, shard, row) FROM '{made}/unique/groups/*.parquet' "
        'GROUP BY "group" ORDER BY n DESC, min(shard || row)'
    )
    grouped = sum(n for n, _ in groups)
    (compared,) = sql("SELECT count(image_sha256) FROM embeddings")[0]
    said = page.text("duplicates")
    assert f"{compared} rows were compared by exact" in said
    assert f"{grouped} rows are in {len(groups)} groups, and {grouped - len(groups)} rows would go" in said
    shown = titles(page.cards["duplicates"])
    assert len(shown) == sum(n for n, _ in sorted(groups, reverse=True)[:6]) and groups[0][0] == 3


def test_the_map_holds_every_picture_of_a_small_dataset(page, sql):
    (number,) = sql("SELECT count(image_embedding) FROM embeddings")[0]
    assert f"All {number} images" in page.text("map")
    paths = [a["d"] for tag, a in page.tags if tag == "path" and re.fullmatch(r"c\d", a.get("class", ""))]
    assert sum(path.count("M") for path in paths) == 2 * number  # coloured by two taxonomies
    data = page.json("map-data")
    assert len(data["places"]) == len(data["captions"]) == len(data["labels"]) == number
    assert {x for place in data["places"] for x in place} <= set(range(1001))
    legend = dict(re.findall(r"(red|blue|no colour at all|circle|square) (\d+)", page.text("map")))
    for taxonomy in ("colors", "shapes"):
        labels = sql(f"SELECT label, count(*) FROM {taxonomy} WHERE label IS NOT NULL GROUP BY 1")
        assert {name: legend[name] for name, _ in labels} == {name: str(n) for name, n in labels}


def test_time_and_provenance_are_those_of_the_run_and_the_parts(page, made):
    run = json.loads((made / "out" / "run.json").read_text())
    stages, runs = page.tables["time"]
    spent = {row[0]: row[1] for row in stages[1:]}
    assert spent["the model"] == f"{run['speed']['seconds']['forward']:.1f}"
    assert runs[1][1:4] == [str(run["speed"]["samples"]), f"{run['speed']['samples_per_second']:.1f}", "1"]
    told = dict(page.tables["provenance"][0])
    assert told["fingerprint"] == run["fingerprint"] and run["versions"]["torch"] in told["versions"]
    assert told["model_sha256"] == run["settings"]["model"] and told["precision"] == "fp32"
    assert told["taxonomy shapes"] == run["taxonomies"]["shapes"]
    assert run["finished"].replace("T", " ").replace("Z", " UTC") in page.text("what")


def test_beam_makes_the_same_bytes(made, reference, tmp_path):
    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        _ = pipeline | ReportEmbeddings(made / "out", tmp_path / "r.html", duplicates=made / "unique")
    assert (tmp_path / "r.html").read_bytes() == reference.read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["r.html"]


@pytest.mark.slow  # two workers of Beam, which import everything anew; the portable runner below has workers too
def test_two_processes_make_the_same_bytes_and_say_where(made, reference, tmp_path):
    argv = ["--input", made / "out", "--output", tmp_path / "r.html", "--duplicates", made / "unique"]
    done = command("pipelines.report", *argv, *TWO_PROCESSES)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path}/r.html: {len(reference.read_bytes()) / 1000:,.0f} kB; open it in a browser\n"
    assert (tmp_path / "r.html").read_bytes() == reference.read_bytes()


def test_the_portable_runner_makes_the_same_bytes(made, reference, service, tmp_path):
    argv = ["--input", made / "out", "--output", tmp_path / "r.html", "--duplicates", made / "unique"]
    done = command("pipelines.report", *argv, *service)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "r.html").read_bytes() == reference.read_bytes()


def test_the_page_loads_nothing_and_runs_only_its_own_script(page):
    assert page.loads() == []
    programs = [text for attributes, text in page.scripts if "type" not in attributes]
    (policy,) = [a["content"] for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"]
    digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in programs]
    assert len(digests) == 1 and f"script-src 'sha256-{digests[0]}'" in policy and "default-src 'none'" in policy
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]


def test_every_picture_has_its_size_and_words(page):
    pictures = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(pictures) > 50
    assert all(a["alt"] and (a["width"], a["height"]) == ("128", "128") for a in pictures)
    assert all(a["src"].startswith("data:image/webp;base64,") for a in pictures)
