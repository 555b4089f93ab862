"""Brace patterns are counted before they are written out."""

import re
import tracemalloc

import braceexpand
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clip_transforms.shards.braces import count_paths
from clip_transforms.shards.inputs import expand
from clip_transforms.shards.unit import PlanError

TOO_MANY = {
    "a/{0..99999999999}.tar": "100,000,000,000",
    "a/{0..99999}{0..99999}.tar": "10,000,000,000",
    "a/{{0..99999},{0..9999999}}.tar": "10,100,000",
    "a/{x,y}/{000000..999999}.tar": "2,000,000",
    "a/{1..-9999999..2}.tar": "5,000,001",
    "{a,b}" * 40: "1,099,511,627,776",
}


@pytest.mark.timeout(20)
@pytest.mark.parametrize("pattern", TOO_MANY)
def test_a_pattern_for_too_many_paths_is_refused_before_it_takes_memory(pattern):
    tracemalloc.start()
    try:
        with pytest.raises(PlanError) as caught:
            expand([pattern])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert str(caught.value) == (
        f"--input {pattern} stands for {TOO_MANY[pattern]} paths, but a brace pattern may stand for at most 1,000,000; "
        "give @file with a path a line, or a glob such as *.tar"
    )
    assert peak < 1 << 20


def test_as_many_paths_as_are_allowed_are_written_out():
    paths = expand(["{000000..999999}"])
    assert len(paths) == 1_000_000 and paths[0] == "000000" and paths[-1] == "999999"


@pytest.mark.parametrize("pattern", ["{a", "{a,b}}", "{" * 5_000 + "}" * 5_000, "{0.." + "9" * 5_000 + "}"], ids=len)
def test_braces_that_do_not_fit_are_one_sentence(pattern):
    with pytest.raises(PlanError, match=re.escape("write {00000..00999} or {a,b}")):
        expand([pattern])


@given(st.text(alphabet="{},.a0159-", max_size=20))
def test_the_count_is_that_of_the_expansion(pattern):
    try:
        count = count_paths(pattern)
    except ValueError:
        with pytest.raises(ValueError):
            list(braceexpand.braceexpand(pattern, escape=False))
        return
    if count < 10_000:
        assert count == len(list(braceexpand.braceexpand(pattern, escape=False)))
