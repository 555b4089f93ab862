"""The beginning and the end of a report: what the dataset is, whether it balances, what it cost, what made it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import Any

from clip_transforms.pages.facts import Facts
from clip_transforms.pages.rendering import decimals, number, share
from clip_transforms.parts.counts import ALL, counted, takes_all_captions
from schemas.samples import MODALITIES

_STAGES = {"forward": "the model", "wait for read": "reading", "wait for decode": "decoding"}
_REST = "writing and the rest"


def about(facts: Facts, rows: int) -> dict[str, Any]:
    """Return what the dataset is.

    Args:
        facts: the facts.
        rows: number of rows that the report looks at.
    """
    run = facts.run
    return {
        "dataset": facts.dataset,
        "name": facts.dataset.rstrip("/").rpartition("/")[2],
        "samples": facts.counts.get("samples", 0),
        "facts": {
            "Model": facts.made["model"],
            "Computed in": _computed(facts),
            "Finished": run["finished"].replace("T", " ").replace("Z", " UTC") if run else "no run came to its end",
            "Taxonomies": ", ".join(facts.taxonomies) or "none",
        },
        "command": shlex.join(run["command"]) if run.get("command") else "",
        "balance": balance(facts.counts),
        "problems": list(run.get("problems", ())),
        "unlabelled": list(facts.unlabelled),
        "selected": {"rows": rows, "of": facts.counts.get("rows", 0), "names": list(facts.selection)},
    }


def _computed(facts: Facts) -> str:
    """Say which precision and device the parts were made with."""
    devices = facts.run.get("parts_by_device")
    if devices:
        return ", ".join(f"{name} ({counted(parts, 'part')})" for name, parts in sorted(devices.items()))
    return str(facts.provenance.get("precision", "unknown precision"))


def balance(counts: Mapping[str, int]) -> list[str]:
    """Return the balance of a dataset: a sentence for each modality."""
    samples = counts.get("samples", 0)
    sentences = []
    for modality in MODALITIES:
        embedded, rejected, absent = (
            counts.get(f"{modality}.{fate}", 0) for fate in ("embedded", "rejected", "absent")
        )
        sentences.append(
            f"Of the {modality}s of {counted(samples, 'sample')}, {number(embedded)} {_were(embedded)} embedded, "
            f"{number(rejected)} {_were(rejected)} rejected, and {number(absent)} {_are(absent)} absent at the source: "
            f"{number(embedded)} + {number(rejected)} + {number(absent)} = {number(samples)}."
        )
    if takes_all_captions(counts):
        offered, embedded, rejected = (counts.get(f"{ALL}.{fate}", 0) for fate in ("offered", "embedded", "rejected"))
        sentences.append(
            f"The sources list {counted(offered, 'caption')} in all: {number(embedded)} embedded + {number(rejected)} "
            "rejected."
        )
    return sentences


def _were(count: int) -> str:
    return "was" if count == 1 else "were"


def _are(count: int) -> str:
    return "is" if count == 1 else "are"


def time(facts: Facts) -> dict[str, Any]:
    """Return where the time of the last run went that embedded something, and a line for each such run."""
    runs = facts.runs
    if not runs:
        return {"runs": []}
    speed = runs[0]["speed"]
    seconds = speed["seconds"]
    shares = {name: seconds.get(clock, 0.0) for clock, name in _STAGES.items()}
    shares[_REST] = max(0.0, seconds.get("task", 0.0) - sum(shares.values()))
    total = sum(shares.values())
    return {
        "stages": [
            (name, decimals(spent, 1), share(spent, total), spent / (max(shares.values()) or 1))
            for name, spent in shares.items()
        ],
        "verdict": _verdict(speed),
        "runs": [_line(run) for run in runs],
    }


def _verdict(speed: Mapping[str, Any]) -> str:
    if "bottleneck" not in speed:
        return ""
    found = f"{speed['bottleneck']} is the bottleneck: {speed['hint']}."
    return found[0].upper() + found[1:]


def _line(run: Mapping[str, Any]) -> dict[str, str]:
    speed = run["speed"]
    return {
        "started": run["started"].replace("T", " ").replace("Z", ""),
        "samples": number(speed["samples"]),
        "rate": decimals(speed["samples_per_second"], 1),
        "processes": str(speed.get("processes", 1)),
        "ceiling": share(speed["fraction_of_ceiling"], 1) if "fraction_of_ceiling" in speed else "not measured",
    }


def provenance(facts: Facts) -> dict[str, str]:
    """Return everything that decides the numbers, name → value."""
    made = {name: value for name, value in facts.provenance.items() if name != "versions"}
    found = {"fingerprint": facts.made["fingerprint"], **made}
    said = {_text(value) for value in made.values()}  # what the parts say is not repeated
    found |= {f"setting {name}": value for name, value in facts.made["settings"].items() if value and value not in said}
    found |= {f"taxonomy {name}": digest for name, digest in facts.made["taxonomies"].items()}
    found |= {"versions": facts.provenance["versions"]} if "versions" in facts.provenance else {}
    return {name: _text(value) for name, value in found.items()}


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_text(one)}" for name, one in value.items() if one is not None)
    if isinstance(value, (tuple, list)):
        return " and ".join(_text(one) for one in value)
    return value if isinstance(value, str) else json.dumps(value)
