"""SQL expressions: what they mean, and what they cannot reach."""

import os
import subprocess
import sys

import pyarrow as pa
import pytest
from forked import run

from clip_transforms.select.expression import Expression
from clip_transforms.select.fence import ExpressionError

LABELS = pa.dictionary(pa.int32(), pa.string())
SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("clip_score", pa.float32()),
        ("width", pa.int32()),
        ("price", pa.float64()),
        ("licence", pa.string()),
        ("image_embedding", pa.list_(pa.float16(), 2)),
        ("odd", pa.float32()),
        ("animals.label", LABELS),
        ("animals.probability", pa.float32()),
        ("animals.top", pa.list_(pa.struct([("label", pa.string())]))),
    ]
)
ROWS = pa.table(
    [
        pa.array(["a", "b", "c", "d"]),
        pa.array([0.29, 0.28, None, float("nan")], pa.float32()),
        pa.array([1, 2, 3, 4], pa.int32()),
        pa.array([0.1, 0.2, 0.3, float("nan")]),
        pa.array(["x", None, "y", "z"]),
        pa.array([[1, 0], [0, 1], [1, 0], [1, 0]], pa.list_(pa.float32(), 2)).cast(pa.list_(pa.float16(), 2)),
        pa.array([1, float("inf"), float("-inf"), None], pa.float32()),
        pa.array(["cat", "dog", None, "cat"]).dictionary_encode(),
        pa.array([0.5, 0.6, 0.7, 0.8], pa.float32()),
        pa.array([[{"label": "cat"}]] * 4, SCHEMA.field("animals.top").type),
    ],
    schema=SCHEMA,
)
T, F, N = True, False, None


@pytest.mark.parametrize(
    "sql, expected",
    [
        ("clip_score >= 0.29", [T, F, N, N]),  # as float64 the stored 0.29 is less
        ("clip_score >= 2.9e-1", [T, F, N, N]),
        ("clip_score = 0.29", [T, F, N, N]),
        ("clip_score in (0.29, 0.5)", [T, F, N, N]),
        ("clip_score between 0.28 and 0.285", [F, T, N, N]),
        ("not clip_score < 0.29", [T, F, N, N]),
        ("CLIP_SCORE > .2", [T, T, N, N]),
        ("clip_score > 1000000", [F, F, N, N]),  # DuckDB takes NaN for the largest number
        ("clip_score is null", [F, F, T, T]),
        ("price > 0.1", [F, T, T, N]),  # a float64 stays one
        ("price = 0.1", [T, F, F, N]),
        ("price / 0 is null", [T, T, T, T]),
        ("animals.label = 'cat'", [T, F, N, T]),
        ("animals.label = 'no class of it'", [F, F, N, F]),
        ("Animals.Probability > 0.6", [F, F, T, T]),  # the stored 0.6, a float32, is not greater
        ("animals['probability'] > 0.6", [F, F, T, T]),
        ("struct_extract(animals, 'probability') > 0.6", [F, F, T, T]),
        ("round(clip_score, 2) >= 0.29", [T, F, N, N]),
        ("clip_score >= 0.3 - 0.01", [T, F, N, N]),
        ("-clip_score <= -0.29", [T, F, N, N]),
        ("clip_score * 1e0 >= 0.29", [T, F, N, N]),
        ("clip_score >= 0.29::double", [F, F, N, N]),  # the user chose the type
        ("price > clip_score", [F, F, N, N]),
        # NaN that is computed is null: of infinities, roots, logarithms.
        ("odd - odd > 1", [F, N, N, N]),
        ("odd * 0 between -1 and 1", [T, N, N, N]),
        ("odd - odd in (0, 'nan'::float)", [T, N, N, N]),
        ("(odd - odd) is null", [F, T, T, T]),
        ("coalesce(odd - odd, 7) = 7", [F, T, T, T]),
        ("greatest(odd - odd, 0) = 0", [T, T, T, T]),
        ("least(odd - odd, 0) is null", [F, F, F, F]),
        ("sqrt(odd) > 0", [T, T, N, N]),
        ("ln(-width) > 0", [N, N, N, N]),
        ("acos(width) >= 0", [T, N, N, N]),
        ("pow(odd, 0.5) > 0", [T, T, T, N]),  # IEEE: the root of -inf is inf
        ("price * 'nan'::double > 0", [N, N, N, N]),
        ("not (odd - odd) > 1", [T, N, N, N]),
        ("case when odd - odd > 0 then true else false end", [F, F, F, F]),
        ("odd / 0 is null", [T, T, T, T]),
        ("odd / (width - 1) > 0", [N, T, F, N]),
        ("width / (width - 1) > 0", [N, T, T, T]),
        ("7 // (width - 1) > 0", [N, T, T, T]),
        ("animals.top[1].label = 'cat'", [T, T, T, T]),
        ("animals.label = 'cat' and clip_score > 0.2", [T, F, N, N]),
        ("licence is not null", [T, F, T, T]),
        ("width % 2 = 0 -- a comment", [F, T, F, T]),
        ("1 = 1", [T, T, T, T]),
        ("licence = 'ü' or clip_score = 2.8e-1", [F, T, N, N]),  # a letter of two bytes before a number
        ("array_cosine_similarity(image_embedding, [1, 0]::FLOAT[2]) > 0.5", [T, F, T, T]),
        ("regexp_matches(key, '[ab]')", [T, T, F, F]),
        ("case when width > 2 then clip_score is null else false end", [F, F, T, T]),
        ("list_sum([width, 1]) > 2 and if(width > 1, true, false)", [F, T, T, T]),  # macros of one row
        ("strftime(to_timestamp(0), '%H') = '00'", [T, T, T, T]),
        ("try_cast(licence as integer) is null", [T, T, T, T]),
    ],
)
def test_an_expression_means_what_it_says(sql, expected):
    expression = Expression.of("--where", sql, SCHEMA)
    assert expression.evaluate(ROWS).to_pylist() == expected


@pytest.mark.parametrize(
    "sql",
    [
        " + ".join(["clip_score"] * 100) + " > 0.1",
        " or ".join(f"clip_score - odd > {i}.5" for i in range(100)),
        f"clip_score / width in ({', '.join(f'{i}.5' for i in range(300))})",
    ],
    ids=["many terms", "many conditions", "many values"],
)
def test_long_expressions_are_fine(sql):
    assert len(Expression.of("--where", sql, SCHEMA).evaluate(ROWS)) == 4


def test_duckdb_evaluates_what_the_user_wrote_where_floats_play_no_part():
    sql = "animals.label   =  'cat' and width > 1 /* my own */"
    assert Expression.of("--where", sql, SCHEMA).sql == sql


def test_a_column_of_ones_own_may_be_called_as_one_of_labels():
    schema = pa.schema([("photo.label", pa.string()), ("animals.label", pa.string())])
    rows = pa.table({"photo.label": ["a", "b"], "animals.label": ["cat", "dog"]}, schema)
    expression = Expression.of("--where", "\"photo.label\" = 'a' and animals.label = 'cat'", schema)
    assert expression.evaluate(rows).to_pylist() == [True, False]


def test_times_do_not_depend_on_where_the_worker_stands():
    sql = "strftime(timestamptz '2020-01-01 00:00:00', '%Z') = 'UTC' and strftime(to_timestamp(0), '%H') = '00'"
    code = (
        "import pyarrow as pa; from clip_transforms.select.expression import Expression; "
        f"e = Expression.of('--where', {sql!r}, pa.schema([('key', pa.string())])); "
        "assert e.evaluate(pa.table({'key': ['a']})).to_pylist() == [True]"
    )
    env = {**os.environ, "TZ": "Asia/Tokyo"}
    done = run("-c", code, env=env, timeout=60)
    assert done.returncode == 0, done.stderr


ODD = ("a.b", "animals", "Width", "width", "select", "it's", 'say "x"', "_ROW", "rows", "ü", "my column")


@pytest.mark.parametrize("name", ODD)
def test_columns_may_have_any_name(name):
    """Also one that differs from another in case alone, and that of a taxonomy."""
    schema = pa.schema([*((odd, pa.int32()) for odd in ODD), ("animals.label", pa.string())])
    rows = pa.table({odd: [place, -1] for place, odd in enumerate(ODD)} | {"animals.label": ["cat", "dog"]}, schema)
    quoted = '"' + name.replace('"', '""') + '"'
    expression = Expression.of("--where", f"{quoted} = {ODD.index(name)}", schema)
    assert expression.columns == (name,) and expression.evaluate(rows).to_pylist() == [True, False]
    assert Expression.of("--where", "animals.label = 'cat'", schema).evaluate(rows).to_pylist() == [True, False]


@pytest.mark.parametrize("sql", ['"Width" > "width"', "animals > 1 and animals.label = 'cat'"])
def test_columns_that_are_one_to_sql_are_not_mixed_up(sql):
    schema = pa.schema([*((odd, pa.int32()) for odd in ODD), ("animals.label", pa.string())])
    with pytest.raises(ExpressionError, match="which SQL cannot tell apart; use one of them"):
        Expression.of("--where", sql, schema)


def test_an_expression_reads_only_the_columns_that_it_names():
    assert Expression.of("--where", "animals.label = 'cat' and WIDTH > 1", SCHEMA).columns == ("animals.label", "width")
    assert Expression.of("--where", "1 = 1", SCHEMA).columns == ()
    whole = Expression.of("--where", "animals is not null", SCHEMA).columns
    assert whole == ("animals.label", "animals.probability", "animals.top")


@pytest.mark.parametrize(
    "sql, rank",
    [
        ("clip_score", "float32"),
        ("clip_score + 0.5", "float32"),
        ("price", "float64"),
        ("width * 1.5", "float64"),  # a decimal of 12 digits
        ("width", "int64"),
        ("width > 1", "int64"),
        ("width::utinyint", "int64"),
        ("width::ubigint", "uint64"),
    ],
)
def test_a_rank_is_a_number(sql, rank):
    assert Expression.of("--by", sql, SCHEMA).rank == rank


@pytest.fixture
def secret(tmp_path):
    path = tmp_path / "secret.csv"
    path.write_text("a,b\n1,2\n")
    return path


@pytest.mark.parametrize(
    "sql, said",
    [
        ("(select count(*) from read_csv('{secret}')) > 0", "has a sub-select"),
        ("exists (from '{secret}')", "has a sub-select"),
        ("width in (select a from '{secret}')", "has a sub-select"),
        ("true) from read_csv('{secret}') where (true", "is not one expression"),
        ("true); copy (select 1) to '{secret}'; select (true", "is not one expression"),
        ("true); attach '{secret}' as x; select (true", "is not one expression"),
        ("true); install httpfs; load httpfs; select (true", "is not one expression"),
        ("true); set enable_external_access=true; select (true", "is not one expression"),
        ("true), (false", "is not one expression"),
        ("true) --", "is not SQL"),
        ("true) or (true", "closes a bracket that it did not open"),
        ("true) /*", "is not SQL"),
        ("install httpfs", "is not SQL"),
        ("copy x to 'y'", "is not SQL"),
        ("true union select true", "is not SQL"),
        ("read_csv('{secret}') is null", "calls read_csv()"),
        ("read_text('{secret}') = 'a'", "calls read_text()"),
        ("glob('{secret}') is null", "calls glob()"),
        ("getenv('HOME') = 'x'", "calls getenv()"),
        ("current_setting('threads') = '1'", "calls current_setting()"),
        ("sum(width) > 1", "calls sum()"),
        ("random() > 0.5", "calls random()"),
        ("geomean(width) > 1", "calls geomean()"),  # macros: sums over rows, several rows of one, sub-selects
        ("wavg(width, 1) > 1", "calls wavg()"),
        ("json_group_array(key) is null", "calls json_group_array()"),
        ("generate_subscripts([1, 2], 1) > 1", "calls generate_subscripts()"),
        ("regexp_split_to_table(key, 'a') = 'a'", "calls regexp_split_to_table()"),
        ("get_block_size('memory') > 1", "calls get_block_size()"),
        ("ago('1 day') > '2020-01-01'", "calls ago()"),
        ("age(timestamp '2020-01-01') > interval 1 day", "calls age()"),
        ("version() = 'v1'", "calls version()"),
        ("json_serialize_plan('from x') is null", "calls json_serialize_plan()"),
        ("now() > '2020-01-01'", "calls now()"),
        ("nextval('x') > 1", "calls nextval()"),
        ("row_number() over () > 1", "has a window function"),
        ("list_filter([1], lambda x: x > 1) = [1]", "has a lambda"),
        ("*", "has a *"),
        ("columns('.*') > 1", "has a *"),
        ("$1 > 2", "has a parameter"),
        ("rows.key = 'a'", "names rows.key, but the dataset has no such column"),
        ("animals.label = zebu", "; a text stands in single quotes, as 'zebu'"),
        ('key = "zebu"', "; a text stands in single quotes, as 'zebu', and double quotes are for names of columns"),
        ("clip_score > 0.2;", "has a semicolon, but it is one condition and no statement; omit it"),
        ("true; drop table rows", "has a semicolon"),
        ("_row is null", "names _row, but the dataset has no such column"),
        ("clip_skore > 0.2", "did you mean clip_score?"),
        ("animal.label = 'cat'", "did you mean animals.label?"),
        ("zzzzzzz = 1", "there are key, clip_score, width"),
        ("clip_score", "is of the type float, but it must be true or false"),
        ("", "is empty"),
        ("not " * 900 + "true", "is nested too deeply"),
        ("abs(" * 900 + "width" + ")" * 900 + " > 0", "is nested too deeply"),
        ("odd / (1 + " * 40 + "width" + ")" * 40 + " > 0", "is nested too deeply"),
        ("width > 0 \ud800", "is not UTF-8"),
        ("width = 'a'", "Could not convert"),
    ],
)
def test_what_is_no_expression_over_a_row_is_one_sentence(sql, said, secret):
    with pytest.raises(ExpressionError) as refusal:
        Expression.of("--where", sql.format(secret=secret), SCHEMA).evaluate(ROWS)
    assert said in str(refusal.value) and "\n" not in str(refusal.value)
    assert secret.read_text() == "a,b\n1,2\n"


@pytest.mark.parametrize(
    "sql, said",
    [
        ("key", "is of the type string, but it must be a number for each row"),
        (
            "date '2020-01-01'",
            "is of the type date32[day], but it must be a number for each row; epoch_us(…) makes one",
        ),
        ("width::hugeint", "has too many digits to be ranked exactly; write (…)::BIGINT for whole numbers, or (…)::D"),
        ("width::bigint * 1.5", "is of the type decimal128(21, 1), which has too many digits to be ranked exactly"),
    ],
)
def test_a_rank_that_cannot_be_ranked_is_refused(sql, said):
    with pytest.raises(ExpressionError) as refusal:
        Expression.of("--by", sql, SCHEMA)
    assert said in str(refusal.value) and "\n" not in str(refusal.value)


def test_a_value_that_cannot_be_cast_names_the_expression():
    expression = Expression.of("--where", "licence::int > 1", SCHEMA)
    with pytest.raises(ExpressionError, match="--where 'licence::int > 1': Conversion Error: Could not convert"):
        expression.evaluate(ROWS)


def test_the_connection_itself_reaches_nothing(secret):
    """The second fence, should a check of the first one ever miss something."""
    import duckdb

    from clip_transforms.select.fence import open_connection

    for sql in (f"FROM read_csv('{secret}')", f"COPY (SELECT 1) TO '{secret}'", "INSTALL httpfs", "SET threads = 2"):
        with pytest.raises(duckdb.Error):
            open_connection().execute(sql)
    assert secret.read_text() == "a,b\n1,2\n"


def test_the_connection_cannot_write_to_the_folder_of_its_temporary_files(tmp_path, monkeypatch):
    """DuckDB allows that folder, `.tmp` where the process works, whatever else is forbidden."""
    (tmp_path / ".tmp").mkdir()
    code = (
        "from clip_transforms.select.fence import open_connection\n"
        "open_connection().execute(\"COPY (SELECT 1) TO '.tmp/a.csv'\")"
    )
    monkeypatch.setenv("PYTHONPATH", os.getcwd())
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert "Permission" in done.stderr.splitlines()[-1] and not list((tmp_path / ".tmp").iterdir())
