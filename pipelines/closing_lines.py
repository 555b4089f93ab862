"""The lines that a run prints at its end, made from run.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from clip_transforms.parts.counts import (
    ALL,
    absent_everywhere,
    counted,
    counted_kind,
    seen_fields,
    takes_all_captions,
    uncast_columns,
)
from clip_transforms.run.end import CAPTION_FLAG, DAMAGED, IMAGE_FLAGS, NOTHING_EMBEDDED
from schemas.samples import MODALITIES

_ARTICLES = {"image": "an image", "caption": "a caption"}
_KINDS = 8  # number of kinds of unread files that a line names
_FLAGS = {"image": IMAGE_FLAGS, "caption": CAPTION_FLAG}


def closing_lines(run: Mapping[str, Any], output: str) -> list[str]:
    """Return the lines that account for every sample and name the bottleneck."""
    units, counts, speed = run["units"], run["input"], run["speed"]
    captions = ["captions"] if takes_all_captions(counts) else []
    kinds = ", ".join(["embeddings", *(f"labels/{name}" for name in run["taxonomies"]), *captions, "rejects"])
    labelled = f", {units['labelled']:,} of them labelled" if units["labelled"] else ""
    committed = counted(units["committed"], "unit")
    lines = [f"{committed} committed, {units['skipped']:,} skipped{labelled}, in {output} ({kinds})"]
    lines += [_modality_line(modality, counts) for modality in MODALITIES]
    lines += [_all_captions_line(counts)] if captions else []
    lines += [f"note: {counted_kind(found, key[5:])}" for key, found in counts.items() if key.startswith("note.")]
    lines += _left_out_line(run.get("left_out", {}))
    lines += _absent_line(counts, run["problems"])
    lines += [f"warning: no sample has the field of --columns {key[7:]}" for key in counts if _is_void(key, counts)]
    lines += _accepted_damage(counts, run["problems"])
    lines += _mixed_line(run.get("parts_by_device", {}))
    for taxonomy, parts in run.get("unlabelled", {}).items():
        lines.append(
            f"warning: labels/{taxonomy} lacks {counted(parts, 'part')} with new embeddings; "
            f"python -m pipelines.label --input {output} --taxonomy FILE adds them"
        )
    plan = run.get("plan") or {"units": units["input"], "missing": 0, "counts": counts}  # only a share has a plan
    if others := run["dataset"]["parts"] - (plan["units"] - plan["missing"]):
        samples = run["dataset"].get("samples", 0) - plan["counts"].get("samples", 0)
        lines.append(
            f"note: {output} also holds {counted(others, 'part')} of other inputs, {counted(samples, 'sample')}; "
            "queries read them all; give each input an --output of its own if you do not want that"
        )
    if not units["committed"] and not units["labelled"] and not run["problems"]:
        lines.append("nothing was left to do")
    if speed["samples"]:
        lines.append(_speed_line(speed))
    if "share" in plan:
        lines.append(_share_line(plan))
    return [*lines, *(f"not complete: {problem}" for problem in run["problems"])]


def _left_out_line(left_out: Mapping[str, Sequence[Any]]) -> list[str]:
    """Return a line if the inputs hold something that may hold samples and is not read, the most frequent first."""
    kinds = sorted(left_out.items(), key=lambda item: (-item[1][0], item[0]))
    shown = [
        f"{counted_kind(count, kind)} ({first}{', …' if count > 1 else ''})" for kind, (count, first) in kinds[:_KINDS]
    ]
    rest = [f"{sum(count for _, (count, _) in kinds[_KINDS:]):,} of other kinds"] if kinds[_KINDS:] else []
    return [f"note: not read: {', '.join(shown + rest)}"] if kinds else []


def _mixed_line(parts: Mapping[str, int]) -> list[str]:
    """Return a line if workers have embedded in different precisions, as `auto` makes unlike machines do."""
    if len(parts) < 2:
        return []
    shown = ", ".join(f"{counted(count, 'part')} in {how}" for how, count in sorted(parts.items()))
    return [f"note: {shown}; the embeddings differ by rounding, see docs/fidelity.md; --precision makes them alike"]


def _share_line(plan: Mapping[str, Any]) -> str:
    """Return how far the whole plan is, of which this run did a share."""
    if not plan["missing"]:
        return f"share {plan['share']} is done, and with it the whole plan, {counted(plan['units'], 'unit')}"
    are = "is" if plan["missing"] == 1 else "are"
    missing = f"{counted(plan['missing'], 'unit')} of the plan {are} not committed yet"
    return f"share {plan['share']} is done; {missing}, so there is no _SUCCESS"


def _absent_line(counts: Mapping[str, int], problems: Sequence[str]) -> list[str]:
    """Return a line if no sample has an image, or none a caption, unless a problem says so already."""
    absent = absent_everywhere(counts)
    if not absent or any(problem.startswith(NOTHING_EMBEDDED) for problem in problems):
        return []
    line = f"note: no sample has {' or '.join(_ARTICLES[modality] for modality in absent)}"
    if not (fields := seen_fields(counts)):
        return [line]
    flags = ", ".join(_FLAGS[modality] for modality in absent)
    return [f"{line}; {fields}; if one of them is meant, name it: {flags}"]


def _is_void(key: str, counts: Mapping[str, int]) -> bool:
    """Return whether a count is of a user's column that the source does not have."""
    if not key.startswith("column.") or counts[key] or not counts.get("rows", 0):
        return False
    return key.removeprefix("column.") not in uncast_columns(counts)


def _accepted_damage(counts: Mapping[str, int], problems: Sequence[str]) -> list[str]:
    """Return a line if shards could not be read to their end, unless a problem says so already."""
    damaged = counts.get("shards.rejected", 0)
    if not damaged or any(DAMAGED in problem for problem in problems):
        return []
    return [f"warning: {counted(damaged, 'shard')} {DAMAGED} (see rejects/); the samples behind the damage are missing"]


def _modality_line(modality: str, counts: Mapping[str, int]) -> str:
    embedded, rejected, absent = (counts.get(f"{modality}.{fate}", 0) for fate in ("embedded", "rejected", "absent"))
    line = (
        f"{modality + 's':9} {counts.get('samples', 0):,} = {embedded:,} embedded + {rejected:,} rejected"
        f"{_reasons(modality, counts)} + {absent:,} absent"
    )
    return line + (_cut("caption", counts) if modality == "caption" else "")


def _all_captions_line(counts: Mapping[str, int]) -> str:
    offered, embedded, rejected = (counts.get(f"{ALL}.{fate}", 0) for fate in ("offered", "embedded", "rejected"))
    line = f"all captions {offered:,} = {embedded:,} embedded + {rejected:,} rejected{_reasons(ALL, counts)}"
    return line + _cut(ALL, counts)


def _reasons(kind: str, counts: Mapping[str, int]) -> str:
    prefix = f"{kind}.rejected."
    reasons = ", ".join(f"{found:,} {key[len(prefix) :]}" for key, found in counts.items() if key.startswith(prefix))
    return f" ({reasons})" if reasons else ""


def _cut(kind: str, counts: Mapping[str, int]) -> str:
    cut = counts.get(f"{kind}.truncated", 0)
    return f"; {cut:,} cut at 77 tokens" if cut else ""


def _speed_line(speed: Mapping[str, Any]) -> str:
    rate = (
        f"{speed['samples_per_second']:,.3g} pairs/s"
        if speed["samples_per_second"] < 1000
        else (f"{speed['samples_per_second']:,.0f} pairs/s")
    )
    verdict = "too short a run to tell what held it back"
    if "bottleneck" in speed:
        verdict = f"{speed['bottleneck']} is the bottleneck: {speed['hint']}"
    if "ceiling" in speed:
        reached, bound = f"{speed['fraction_of_ceiling']:.0%}", f"{speed['bound']:.0%}"
        if round(speed["fraction_of_ceiling"], 2) <= round(speed["bound"], 2):
            rate += f", {reached} of this process's ceiling ({speed['ceiling']:,.0f}), where {bound} is the most that "
            rate += "decoding leaves"
        else:  # a run faster than its ceiling means that the ceiling was mismeasured
            rate += (
                f"; the ceiling is not known, since the batches that measure it ran slower ({speed['ceiling']:,.0f} "
                "pairs/s) than the rest: something else used the machine then, or their images were larger"
            )
    elif "shares" in speed:
        shares = ", ".join(f"{name} {share:.0%}" for name, share in speed["shares"].items())
        return f"{rate} with {speed['processes']} processes, start-up included; their time: {shares}"
    return f"{rate}; {verdict}"
