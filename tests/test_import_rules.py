"""The arrows of the house: who may import whom. A new arrow is a one-line change here."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Place → the places of ours that it may import. `top` is clip_transforms/*.py.
ALLOWED = {
    "schemas": {"schemas"},
    "storage": {"storage"},
    "clip": {"clip", "storage"},
    "shards": {"shards", "schemas", "storage", "clip"},
    "engine": {"engine", "schemas", "storage", "clip"},
    "parts": {"parts", "schemas", "storage", "clip"},
    "demo": {"demo", "schemas", "storage", "clip"},
    "top": {"top", "shards", "engine", "parts", "demo", "clip", "schemas", "storage"},
    "pipelines": {"pipelines", "top", "shards", "engine", "parts", "demo", "clip", "schemas", "storage"},
}
TRANSFORMS = {"embed_shards", "label_embeddings", "read_embeddings"}
FORBIDDEN = {  # third-party packages that a place must not know
    "schemas": {"apache_beam", "torch", "fsspec", "numpy"},
    "storage": {"apache_beam", "torch", "pyarrow"},
    "clip": {"apache_beam", "pyarrow"},
    **dict.fromkeys(("shards", "engine", "parts", "demo"), {"apache_beam"}),
    "pipelines": {"torch"},
}
FILES = sorted(path for place in ("schemas", "clip_transforms", "pipelines") for path in (ROOT / place).rglob("*.py"))


def place_of(module):
    parts = module.split(".")
    if parts[0] in ("schemas", "pipelines"):
        return parts[0]
    if parts[0] != "clip_transforms":
        return None
    if len(parts) > 1 and parts[1] in ALLOWED:
        return parts[1]
    return "top"


def imports_of(path):
    """Every module that a file imports, at its top or inside a function."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def module_of(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_a_file_imports_only_what_its_place_may(path):
    place = place_of(module_of(path))
    for imported in imports_of(path):
        target = place_of(imported)
        assert target is None or target in ALLOWED[place], f"{path} ({place}) imports {imported} ({target})"
        package = imported.split(".")[0]
        assert package not in FORBIDDEN.get(place, ()), f"{path} ({place}) imports {imported}"


@pytest.mark.parametrize("name", sorted(TRANSFORMS))
def test_a_transform_imports_no_other_transform(name):
    others = TRANSFORMS - {name}
    imported = set(imports_of(ROOT / "clip_transforms" / f"{name}.py"))
    assert not [i for i in imported for other in others if i.startswith(f"clip_transforms.{other}")]


def test_the_tree_has_the_places_that_the_rules_name():
    assert all(any(place_of(module_of(path)) == place for path in FILES) for place in ALLOWED)


def test_a_process_of_several_imports_no_beam():
    code = (
        "import sys, clip_transforms.embed_process, clip_transforms.embed_task; sys.exit('apache_beam' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60).returncode == 0


def test_importing_the_launcher_imports_no_torch_and_prints_nothing():
    """One after the other in one process: what torch is not imported by together, it is not by any alone."""
    modules = ["clip_transforms", "clip_transforms.clip", "clip_transforms.run_plan", "pipelines.embed"]
    code = f"import sys, {', '.join(modules)}; sys.exit(3 if 'torch' in sys.modules else 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
