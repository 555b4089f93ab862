"""What a page asks is answered as the commands answer it: the same rows, in the same order."""

import base64
import csv
import io
import re
import shlex

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from browse_client import Client, loaded_session, make_dataset
from conftest import picture
from hypothesis import example, given, settings
from hypothesis import strategies as st

from clip_transforms import filter_embeddings, search_embeddings
from clip_transforms.browsing import answers
from clip_transforms.browsing.question import Question, QuestionError
from clip_transforms.parts.dataset import Dataset
from clip_transforms.select.expression import Expression
from clip_transforms.select.fence import open_connection
from clip_transforms.select.selection import Selection
from pipelines import search as search_command

ALL = 200


def keys(answer):
    return [row["key"] for row in answer["rows"]]


@pytest.fixture(scope="module")
def made(tmp_path_factory, tiny_checkpoint):
    return make_dataset(tmp_path_factory.mktemp("made"), tiny_checkpoint)


@pytest.fixture(scope="module")
def client(made):
    session = loaded_session(made / "out")
    yield Client(session)
    session.close()


@pytest.fixture
def sql(made):
    connection = duckdb.connect()
    for name in ("embeddings", "labels/colors"):
        connection.execute(f"CREATE VIEW {name[-6:]} AS SELECT * FROM '{made}/out/{name}/*.parquet'")
    return lambda query: connection.execute(query).fetchall()


def test_words_find_what_search_finds(made, client):
    answer = client.search(text=" a photo of a cat ", rows=ALL)
    found = search_embeddings(made / "out", text="a photo of a cat", top_k=ALL).to_pylist()
    assert keys(answer) == [row["key"] for row in found] and answer["total"] == answer["shown"] == len(found) == 33
    assert [row["similarity"] for row in answer["rows"]] == [round(row["similarity"], 4) for row in found]
    assert answer["notes"] == []


def test_a_text_that_is_cut_is_said(client):
    assert client.search(text="cat " * 76)["notes"] == [
        "The text is longer than the model reads; only its beginning counts."
    ]
    assert client.search(text="cat " * 75)["notes"] == []


def test_a_dropped_picture_finds_what_search_finds(made, client, tmp_path):
    data = picture(5)
    (tmp_path / "dropped.jpg").write_bytes(data)
    vector = client.post("/api/picture", data).json()["vector"]
    answer = client.search(vector=vector, picture="dropped.jpg", rows=ALL)
    found = search_embeddings(made / "out", image=tmp_path / "dropped.jpg", top_k=ALL).to_pylist()
    assert keys(answer) == [row["key"] for row in found]
    assert {row["key"] for row in answer["rows"][:2]} == {
        "000005",
        "000005.jpg",
    } and "--image PATH/dropped.jpg" in answer["command"]


def test_more_like_a_sample_finds_what_search_finds_and_itself_first(made, client):
    place = next(row["id"] for row in client.search(rows=ALL)["rows"] if row["key"] == "000019")
    answer = client.search(like=place, rows=ALL)
    found = search_embeddings(made / "out", like="000019", top_k=ALL).to_pylist()
    assert keys(answer) == [row["key"] for row in found] and answer["rows"][0]["id"] == place


@pytest.mark.parametrize(
    ("asked", "condition"),
    [
        ({"labels": {"colors": "it's green"}}, "label = 'it''s green'"),
        ({"least": 0.1, "most": 0.5}, "clip_score BETWEEN 0.1::FLOAT AND 0.5::FLOAT"),
        ({"size": 100}, "width >= 100 AND height >= 100"),
        ({"where": "kind = '1' or kind = '2' -- two kinds"}, "kind IN ('1', '2')"),
        ({"where": "kind = '1' or kind = '2'", "most": 0.3}, "kind IN ('1', '2') AND clip_score <= 0.3::FLOAT"),
        ({"where": "colors.margin > 0.01"}, "margin > 0.01::FLOAT"),
        ({"where": "image_embedding[1] > 0"}, "image_embedding[1] > 0"),
        ({"where": "false"}, "false"),
    ],
    ids=[
        "label",
        "score",
        "size",
        "a column of the user's",
        "both, in brackets",
        "not in memory",
        "embeddings",
        "nothing",
    ],
)
def test_filters_keep_what_sql_keeps(client, sql, asked, condition):
    wanted = sql(f"SELECT key FROM ddings JOIN colors USING (shard, row, key) WHERE {condition} ORDER BY shard, row")
    answer = client.search(rows=ALL, **asked)
    assert keys(answer) == [key for (key,) in wanted] and answer["total"] == len(wanted)
    near = client.search(text="a cat", rows=ALL, **asked)
    assert sorted(keys(near)) == sorted(keys(answer))


def test_pages_follow_each_other_without_a_gap(client):
    for asked in ({}, {"text": "a cat"}):
        pages = [client.search(first=first, rows=10, **asked) for first in (0, 10, 20, 30)]
        assert sum(map(keys, pages), []) == keys(client.search(rows=ALL, **asked))
        assert client.search(first=34, rows=10, **asked)["rows"] == []


@pytest.mark.parametrize(
    "asked",
    [
        {"text": "a cat", "labels": {"colors": "it's green"}},
        {"text": "-a \"cat\" $HOME `true` 'x'"},
        {"like": 3, "where": "kind = '0'\n-- of one kind"},
    ],
    ids=["filters", "quoting", "a comment"],
)
def test_the_command_finds_the_same(client, capsys, asked):
    answer = client.search(rows=3, **asked)
    argv = shlex.split(answer["command"])
    assert argv[:3] == ["python", "-m", "pipelines.search"]
    assert search_command.main(argv[3:]) == 0
    printed = re.findall(r"^ +\d+ +-?\d\.\d{4} +(\S+)", capsys.readouterr().out, re.MULTILINE)
    assert printed == keys(answer) and len(printed) == 3


def test_without_a_query_the_command_filters(made, client):
    command = shlex.split(client.search(labels={"colors": "red"})["command"])
    folder = command.pop(6)
    assert command == f"python -m pipelines.filter --input {made}/out --output --where".split() + [
        "colors.label = 'red'"
    ]
    other = shlex.split(client.search(labels={"colors": "green"})["command"])[6]
    assert re.fullmatch("kept-[0-9a-f]{6}", folder) and folder != other, "else the second command would be refused"


def test_a_selection_narrows_everything(made, tmp_path):
    filter_embeddings(made / "out", tmp_path / "kept", where="row < 4")
    session = loaded_session(made / "out", selection=tmp_path / "kept")
    client = Client(session)
    assert session.state()["rows"] == 12 and client.search(rows=ALL)["total"] == 12
    (counts,) = session.state()["labels"].values()
    assert sum(number for _, number in counts) == 12 - client.search(where="colors.label is null")["total"]
    for label, number in counts:
        assert client.search(labels={"colors": label})["total"] == number
    low, high = session.state()["scores"]
    narrower, all_scored = (
        client.search(where=f"clip_score {of}")["total"]
        for of in (f"BETWEEN {low}::FLOAT AND {high}::FLOAT", "IS NOT NULL")
    )
    assert narrower == all_scored and client.search(least=high)["total"] >= 1
    answer = client.search(text="a cat", rows=ALL)
    found = search_embeddings(made / "out", text="a cat", selection=tmp_path / "kept", top_k=ALL).to_pylist()
    assert keys(answer) == [row["key"] for row in found]
    session.close()


def test_against_both_means_the_mean_of_the_cosines(made):
    session = loaded_session(made / "out", against="both")
    answer = Client(session).search(text="a cat", rows=ALL)
    found = search_embeddings(made / "out", text="a cat", against="both", top_k=ALL).to_pylist()
    assert keys(answer) == [row["key"] for row in found] and "alone" not in keys(answer)
    assert "--against both" in answer["command"]
    session.close()


def test_what_is_downloaded_is_a_selection(made, client, tmp_path):
    rows = [row for row in client.search(rows=ALL)["rows"] if row["key"] in ("000003", "script", "000004.jpg")]
    answer = client.post("/api/selection", {"rows": [row["id"] for row in rows]})
    assert answer.headers["content-type"].startswith("text/csv")
    (tmp_path / "selection.csv").write_bytes(answer.body)
    dataset = Dataset.open(made / "out")
    named = Selection.open(dataset, tmp_path / "selection.csv").files[0]
    assert sum(map(len, named.values())) == 3
    head, *lines = csv.reader(io.StringIO(answer.body.decode()))
    assert head == ["shard", "row", "key"] and [line[2] for line in lines] == [row["key"] for row in rows]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ([], "no JSON object"),
        ({"text": 5}, "text must be a text"),
        ({"text": "x" * 2_001}, "2,001 characters, but at most 2,000"),
        ({"text": "\ud800"}, "lone surrogate"),
        ({"text": "a", "like": 1}, "ask for one of them"),
        ({"like": 33}, "like is 33, but it must be a whole number from 0 to 32"),
        ({"like": True}, "like is True"),
        ({"first": -1}, "first is -1"),
        ({"rows": 201}, "from 1 to 200"),
        ({"least": "high"}, "the score is 'high', but it must be a number such as 0.28"),
        ({"labels": {"shapes": "red"}}, "no labels of 'shapes'"),
        ({"labels": ["red"]}, "labels must be an object"),
        ({"vector": "AAAA"}, "not of this dataset"),
        ({"vector": base64.b64encode(np.full(48, np.nan, "<f4").tobytes()).decode()}, "not of this dataset"),
    ],
)
def test_a_wrong_question_is_refused_in_a_sentence(asked, message):
    with pytest.raises(QuestionError, match=re.escape(message)):
        Question.of(asked, 48, 33, {"colors": "digest"})


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("clip_scor > 1", "names clip_scor, but the dataset has no such column; did you mean clip_score?"),
        ('key = "star"', "a text stands in single quotes, as 'star', and double quotes are for names of columns"),
        ("row > 3;", "has a semicolon, but it is one condition and no statement; omit it"),
        ("1 = 1) or (1 = 1", "is not SQL"),
        ("(select count(*) from read_csv('/etc/passwd')) > 0", "a sub-select"),
        ("kind::INT > (kind || 'x')::INT", "Could not convert"),
        ("key", "must be true or false"),
    ],
)
def test_a_wrong_condition_is_refused_where_it_was_typed(client, where, message):
    answer = client.post("/api/search", {"where": where, "labels": {"colors": "red"}})
    assert answer.status == 400 and message in answer.json()["error"] and answer.json()["field"] == "where"
    assert answer.json()["error"].startswith("the condition")


def test_a_condition_that_takes_too_long_is_ended(client, monkeypatch):
    monkeypatch.setattr(answers, "_SECONDS", -1.0)
    answer = client.post("/api/search", {"where": "colors.margin > 0.5"})
    assert answer.status == 400 and "takes more than" in answer.json()["error"]
    monkeypatch.setattr(answers, "_SECONDS", 0.05)
    with pytest.raises(duckdb.InterruptException), answers._in_time():
        open_connection().execute("SELECT sum(a.range * b.range) FROM range(1000000) a, range(1000000) b")


def test_what_is_not_finished_in_the_cache_is_given_up_at_the_end(made, tmp_path):
    session = loaded_session(made / "out", cache=tmp_path)
    with session.plan.cache.unfinished() as folder:
        assert folder.is_dir()
        session.close()
        assert not folder.exists()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 40) | st.just(10**400) | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
FIELDS = ("text", "like", "vector", "picture", "labels", "least", "most", "size", "where", "first", "rows")


@settings(max_examples=80, deadline=None)
@given(st.dictionaries(st.sampled_from(FIELDS), JSON) | JSON)
@example({"least": 10**400})
def test_whatever_is_sent_is_a_question_or_refused(asked):
    try:
        question = Question.of(asked, 4, 33, {"colors": "digest"})
    except QuestionError as refusal:
        assert "\n" not in str(refusal)
    else:
        assert isinstance(question.condition, str) and 0 <= question.first <= 33


@settings(max_examples=30, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12))
@example("'; drop table rows; --")
@example("\\' or true or '")
@example("\x00")
def test_a_label_is_compared_as_it_is_whatever_it_holds(label):
    table = pa.table({"colors.label": [label, f"{label}x", "red", None]})
    question = Question.of({"labels": {"colors": label}, "where": "true or true -- all"}, 4, 33, {"colors": "digest"})
    found = Expression.of("--where", question.condition, table.schema).evaluate(table)
    assert found.to_pylist() == [True, False, label == "red", None]
