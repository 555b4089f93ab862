"""The arrows of the house: who may import whom. A new room is one line here; a new verb is none."""

import ast
import functools
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("shards", "engine", "labels", "select", "exports", "evaluation", "metrics", "pages", "workers")
GROUND = {"clip", "storage", "schemas"}
BELOW = {*ROOMS, "parts", "demo", *GROUND}
# Place → the other places of ours that it may import. A verb is a file of clip_transforms/.
ALLOWED = {
    "schemas": set(),
    "storage": set(),
    "metrics": set(),
    "clip": {"storage"},
    "demo": GROUND,
    "parts": GROUND,
    **{room: {"parts", *GROUND} for room in ROOMS if room != "metrics"},
    "run": BELOW,
    "verb": {"run", *BELOW},
    "browsing": {"run", *BELOW},  # a command that is no verb: it is a server, and no work over parts
    "pipelines": {"verb", "browsing", "run", *BELOW},
}
FORBIDDEN = {  # third-party packages that a place must not know
    "schemas": {"apache_beam", "torch", "fsspec", "numpy"},
    "storage": {"apache_beam", "torch", "pyarrow"},
    "clip": {"apache_beam", "pyarrow"},
    **dict.fromkeys((*ROOMS, "parts", "demo", "run", "browsing"), {"apache_beam"}),
    "verb": {"apache_beam"},  # it warns at its import; run.beam imports it without
    "pipelines": {"torch"},
}
BEAM = "clip_transforms.run.beam"
KNOW_BEAM = (BEAM, "clip_transforms.clip_model_handler")  # the second needs a module that takes seconds to import
FILES = sorted(path for place in ("schemas", "clip_transforms", "pipelines") for path in (ROOT / place).rglob("*.py"))
VERBS = sorted(path.stem for path in (ROOT / "clip_transforms").glob("*.py") if path.stem != "__init__")


def place_of(module):
    parts = module.split(".")
    if parts[0] in ("schemas", "pipelines"):
        return parts[0]
    if parts[0] != "clip_transforms" or len(parts) == 1:
        return None
    return "verb" if parts[1] in VERBS else parts[1] if parts[1] in ALLOWED else None


@functools.cache
def imports_of(path):
    """Every module that a file imports, at its top or inside a function."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def module_of(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_a_file_imports_only_what_its_place_may(path):
    module = module_of(path)
    place = place_of(module.removesuffix(".__init__"))
    for imported in imports_of(path):
        target = place_of(imported)
        assert target in (None, place) or target in ALLOWED[place], f"{path} ({place}) imports {imported} ({target})"
        package = imported.split(".")[0]
        forbidden = FORBIDDEN.get(place, set()) - ({"apache_beam"} if module in KNOW_BEAM else set())
        assert package not in forbidden, f"{path} ({place}) imports {imported}"


def test_only_verbs_their_common_part_and_commands_know_beam():
    knowing = {module_of(path) for path in FILES if any(i.startswith(BEAM) for i in imports_of(path))}
    others = {module for module in knowing if place_of(module) not in ("verb", "pipelines")}
    assert others == {"clip_transforms.run.over_parts"}


@pytest.mark.parametrize("name", VERBS)
def test_a_verb_imports_no_other_verb_and_only_commands_import_it(name):
    verb = f"clip_transforms.{name}"
    others = [path for path in FILES if place_of(module_of(path)) != "pipelines"]
    assert [module_of(p) for p in others if any(i.startswith(f"{verb}.") or i == verb for i in imports_of(p))] == []


def test_every_file_lies_in_a_place_that_the_rules_name():
    homeless = [module_of(path) for path in FILES if place_of(module_of(path).removesuffix(".__init__")) is None]
    assert homeless == ["clip_transforms.__init__"]


def test_no_room_imports_another_that_imports_it():
    """The levels of the house: commands, verbs and the server, run, rooms, parts, ground."""
    levels = [{"pipelines"}, {"verb", "browsing"}, {"run"}, set(ROOMS), {"parts", "demo"}, GROUND]
    height = {place: level for level, places in enumerate(levels) for place in places}
    for place, targets in ALLOWED.items():
        assert all(height[target] >= height[place] for target in targets) and len(levels) <= 6


def test_a_process_of_several_imports_no_beam():
    code = "import sys, clip_transforms.run.child; sys.exit('apache_beam' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60).returncode == 0


def test_importing_the_launcher_imports_no_torch_and_prints_nothing():
    """One after the other in one process: what torch is not imported by together, it is not by any alone."""
    modules = ["clip_transforms", "clip_transforms.clip", "clip_transforms.run.plan", "pipelines.embed"]
    code = f"import sys, {', '.join(modules)}; sys.exit(3 if 'torch' in sys.modules else 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("name", ["LabelEmbeddings"])
def test_a_verb_is_imported_without_beams_warning_and_without_silencing_others(name):
    code = (
        "import logging; logging.disable(logging.INFO)\n"
        f"from clip_transforms import {name}\n"
        "assert 'apache_beam' in __import__('sys').modules and logging.root.manager.disable == logging.INFO\n"
        "logging.warning('still heard')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "WARNING:root:still heard\n")
