"""A hundred thousand units, on the launcher."""

import pytest

from benchmarks.many_units import UNITS, measure


@pytest.mark.slow  # some minutes, in which the parts of a hundred thousand units are written
@pytest.mark.timeout(1800)
def test_a_hundred_thousand_units_are_planned_and_found_complete_again_in_a_gigabyte(tmp_path):
    found = measure(tmp_path, UNITS)
    planned, again = found["planned"], found["again"]
    assert len(list((tmp_path / "out" / "embeddings").iterdir())) == UNITS
    assert again["code"] == 3, "empty tars embed nothing"
    assert max(planned["megabytes"], again["megabytes"]) < 1000 and again["graph"][0] < 1000, found
