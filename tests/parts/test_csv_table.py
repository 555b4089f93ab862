"""CSV files as people and spreadsheets write them."""

import pyarrow as pa
import pytest

from clip_transforms.parts.csv_table import read_csv


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_the_first_line_shows_what_separates_columns(separator):
    text = separator.join(["key", "row"]) + "\n" + "".join(f"{i:03d}{separator}{i}\n" for i in range(3))
    found = read_csv(text.encode(), {"key": pa.string(), "absent": pa.int64()})
    assert found.to_pydict() == {"key": ["000", "001", "002"], "row": [0, 1, 2]}


def test_a_value_may_hold_lines_also_where_the_file_is_read_in_several_blocks():
    lines = "one\ntwo\n" * 5_000
    text = "row,caption\n" + "".join(f'{i},"{lines}"\n' for i in range(40))
    assert len(text) > 1 << 20, "a block of Arrow has a megabyte"
    assert read_csv(text.encode(), {}).to_pydict() == {"row": list(range(40)), "caption": [lines] * 40}
