"""The troubleshooting page and the code, both ways."""

import ast
import re
from pathlib import Path

from conftest import ROOT

from schemas.rejects import REASONS

ERRORS = {
    "UsageError",
    "PlanError",
    "CheckpointError",
    "ArchiveError",
    "TaxonomyError",
    "ColumnError",
    "StorageError",
    "OutputError",
    "FingerprintError",
    "DatasetError",
}


# Plain ValueErrors of these files are settings; elsewhere they are for programmers.
SETTINGS = {
    *("samples.py", "unit.py", "run_settings.py", "runner_options.py", "label_embeddings.py", "model_spec.py"),
    *("tensor_shapes.py", "configurations.py", "layouts.py", "preprocess.py"),
}


def messages_in_the_code():
    found = set()
    for path in [
        p for place in ("schemas", "clip_transforms", "pipelines") for p in (Path(ROOT) / place).rglob("*.py")
    ]:
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.args):
                continue
            if node.func.id in ERRORS or (node.func.id == "ValueError" and path.name in SETTINGS):
                template = template_of(node.args[-1])
                if len(re.sub(r"[…:() ]", "", template)) > 3:  # else it only hands another message on
                    found.add(template)
    return found


def template_of(node):
    if isinstance(node, ast.JoinedStr):
        text = "".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
    else:
        text = node.value if isinstance(node, ast.Constant) else ""
    return re.sub(r"\s+", " ", text).strip()


def rows_of_the_page():
    page = (Path(ROOT) / "docs" / "troubleshooting.md").read_text()
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("| `")]


def test_the_troubleshooting_page_lists_every_message_and_no_other():
    page = {row[0].strip("`") for row in rows_of_the_page() if len(row) == 3 and row[0].strip("`") not in reasons()}
    code = messages_in_the_code()
    assert code - page == set(), "not on the page"
    assert page - code == set(), "no longer in the code"


def reasons():
    return {f"{stage}: {reason}" for stage, reason in REASONS}


def test_the_troubleshooting_page_lists_every_reject_reason():
    assert reasons() <= {row[0].strip("`") for row in rows_of_the_page()}


def test_no_message_has_two_entries():
    first = [row[0] for row in rows_of_the_page()]
    assert sorted(set(first)) == sorted(first)


def test_every_entry_has_a_cause_and_a_cure():
    assert all(len(row) == 3 and row[1] and row[2] for row in rows_of_the_page())
