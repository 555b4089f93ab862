"""What an evaluation leaves: `metrics.json` and its two tables, made of what the steps counted."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from clip_transforms.metrics.intervals import spread, wilson
from clip_transforms.metrics.ranks import KS
from clip_transforms.metrics.single_label import TOP, Confusion
from clip_transforms.run.ranking_steps import Rankings, Rated
from clip_transforms.run.tally import Group, Tally

Rows = list[dict[str, Any]]
_SHOWN = 20  # values of the truth that are no class, and classes, that are named
RANKED = ("average_precision", "eleven_point_precision", "roc_auc")


@dataclasses.dataclass
class Outcome:
    """What an evaluation found, filled measure by measure.

    Attributes:
        content: measure → its part of `metrics.json`.
        classes: rows of `per_class.parquet`.
        groups: rows of `per_group.parquet`, without their spreads.
    """

    content: dict[str, Any] = dataclasses.field(default_factory=dict)
    classes: Rows = dataclasses.field(default_factory=list)
    groups: Rows = dataclasses.field(default_factory=list)

    def add_zeroshot(self, tally: Tally, names: Mapping[str, Sequence[str]], rankings: Mapping[str, Rankings]) -> None:
        """Add what was counted of zero-shot labels.

        Args:
            tally: the counts.
            names: taxonomy → names of its classes.
            rankings: taxonomy → its rankings; empty if samples have one class each.
        """
        found: dict[str, Any] = {
            "rows": dict(tally.rows),
            "unknown_truth": dict(sorted(tally.unknown.items())),
            "taxonomies": {},
        }
        for taxonomy, classes in names.items():
            confusions = tally.confusions.get(taxonomy, {})
            self._add_labels("zeroshot", taxonomy, classes, confusions)
            if rankings:
                found["taxonomies"][taxonomy] = self._add_rankings(taxonomy, classes, rankings.get(taxonomy, {}))
            else:
                found["taxonomies"][taxonomy] = self._add_confusions("zeroshot", taxonomy, classes, confusions)
        self.content["zeroshot"] = found

    def add_retrieval(self, found: Mapping[str, Any]) -> None:
        """Add what was counted of retrieval."""
        rows, content = dict(found["rows"]), {}
        for direction in ("image_to_caption", "caption_to_image"):
            groups = found["found"].get(direction, {})
            total = {
                name: sum(of[name] for of in groups.values()) for name in ("n", "tied", *(f"recall@{k}" for k in KS))
            }
            candidates = rows.get("captions" if direction == "image_to_caption" else "images", 0)
            content[direction] = {"n": total["n"], "candidates": candidates, "tied": total["tied"]}
            for k in KS:
                name = f"recall@{k}"
                content[direction] |= {name: _rate(total[name], total["n"])}
                content[direction] |= {f"{name}_interval": wilson(total[name], total["n"])}
                for group, of in _named(groups):
                    self._add_rate("retrieval", None, f"{direction} {name}", None, group, (of[name], of["n"]))
        self.content["retrieval"] = {"rows": rows, **content}

    def add_probe(self, found: Mapping[str, Any]) -> None:
        """Add what a probe found."""
        content = {name: found[name] for name in ("rows", "train", "validation", "test", "c")}
        content["classes"] = len(found["classes"])
        content |= {name: found[name] for name in ("converged", "not_trained") if name in found}
        content |= self._add_confusions("probe", None, found["classes"], found["confusions"])
        content["tried"] = [{"c": c, "accuracy": accuracy} for c, accuracy in found.get("tried", {}).items()]
        self.content["probe"] = content

    def _add_confusions(
        self, measure: str, taxonomy: str | None, classes: Sequence[str], groups: Mapping[Group, Confusion]
    ) -> dict[str, Any]:
        """Add confusions of samples that have one class each; their part of `metrics.json`."""
        k = len(classes)
        total = Confusion.sum(k, groups.values()).rated()
        self.classes += _class_rows(measure, taxonomy, classes, total)
        for group, of in _named(groups):
            rated = of.rated()
            n, top = int(rated.counts.sum()), {"acc1": rated.hits.sum(), "acc5": rated.near.sum()}
            for name, hits in top.items():
                if name == "acc1" or k >= TOP:
                    self._add_rate(measure, taxonomy, name, None, group, (int(hits), n))
            row = {"measure": measure, "taxonomy": taxonomy, "metric": "mean_per_class_recall", "group": group}
            self.groups.append({**row, "n": n, "value": rated.mean_per_class_recall()})
            for index in np.flatnonzero(total.samples).tolist():
                counts = int(rated.hits[index]), int(rated.samples[index])
                self._add_rate(measure, taxonomy, "recall", classes[index], group, counts)
        n = int(total.counts.sum())
        acc1, acc5 = int(total.hits.sum()), int(total.near.sum())
        return {
            "classes": k,
            "classes_with_samples": int((total.samples > 0).sum()),
            "n": n,
            "acc1": _rate(acc1, n),
            "acc1_interval": wilson(acc1, n),
            "acc5": _rate(acc5, n) if k >= TOP else None,
            "acc5_interval": wilson(acc5, n) if k >= TOP else None,
            "mean_per_class_recall": total.mean_per_class_recall(),
        }

    def _add_labels(
        self, measure: str, taxonomy: str, classes: Sequence[str], groups: Mapping[Group, Confusion]
    ) -> None:
        """Add the rate at which each group gets each label, with a truth or without."""
        for group, of in _named(groups):
            labels, n = of.labels, int(of.counts.sum())
            for index, name in enumerate(classes):
                self._add_rate(measure, taxonomy, "label_rate", name, group, (int(labels[index]), n))

    def _add_rankings(self, taxonomy: str, classes: Sequence[str], rankings: Rankings) -> dict[str, Any]:
        """Add how well the classes of samples that have several are ranked; their part of `metrics.json`."""
        none: Rated = {None: (0, None, None, None)}
        by_class = [rankings.get(index, none) for index in range(len(classes))]
        for index, name in enumerate(classes):
            n, *rates = by_class[index][None]
            row = {"measure": "zeroshot", "taxonomy": taxonomy, "class_index": index, "class": name, "n": n}
            self.classes.append(row | dict(zip(RANKED, rates, strict=True)))
        for group in sorted({group for of in by_class for group in of if group is not None}):
            row = {"measure": "zeroshot", "taxonomy": taxonomy, "group": group}
            n = sum(of[group][0] for of in by_class if group in of)
            self.groups += [{**row, "metric": name, "n": n, "value": mean} for name, mean in _means(by_class, group)]
            for name, of in zip(classes, by_class, strict=True):
                if group in of:
                    n, *rates = of[group]
                    rated = zip(RANKED, rates, strict=True)
                    self.groups += [{**row, "metric": one, "class": name, "n": n, "value": rate} for one, rate in rated]
        without = [name for name, of in zip(classes, by_class, strict=True) if not of[None][0]]
        return {
            "classes": len(classes),
            "classes_with_samples": len(classes) - len(without),
            "classes_without_samples": without[:_SHOWN],
            "positives": sum(of[None][0] for of in by_class),
            **dict(_means(by_class, None)),
        }

    def _add_rate(
        self,
        measure: str,
        taxonomy: str | None,
        metric: str,
        class_name: str | None,
        group: str,
        counts: tuple[int, int],
    ) -> None:
        """Add a rate of a group."""
        hits, n = counts
        low, high = wilson(hits, n) or (None, None)
        row = {"measure": measure, "taxonomy": taxonomy, "metric": metric, "class": class_name, "group": group}
        self.groups.append({**row, "n": n, "hits": hits, "value": _rate(hits, n), "low": low, "high": high})

    def spreads(self) -> Rows:
        """Set the spread of every row of a group, and return those that are not about a single class."""
        found: dict[tuple, Rows] = {}
        for row in self.groups:
            key = row["measure"], row["taxonomy"], row["metric"], row.get("class")
            found.setdefault(key, []).append(row)
        summary = []
        for key, rows in found.items():
            width = spread(row["value"] for row in rows)
            for row in rows:
                row["spread"] = width
            if key[3] is None and width is not None:
                best = max((row for row in rows if row["value"] is not None), key=lambda row: row["value"])
                worst = min((row for row in rows if row["value"] is not None), key=lambda row: row["value"])
                names = {"measure": key[0], "taxonomy": key[1], "metric": key[2]}
                summary.append({**names, "spread": width, "largest": best["group"], "smallest": worst["group"]})
        return summary


def _means(by_class: Sequence[Rated], group: Group) -> Iterator[tuple[str, float | None]]:
    """Yield the mean of each rate over the classes that have one."""
    for place, name in enumerate(RANKED, 1):
        known = [value for of in by_class if group in of and (value := of[group][place]) is not None]
        yield f"mean_{name}", float(np.mean(known)) if known else None


def _named(groups: Mapping[Group, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the groups that have a name, numbers by size."""
    named = [(group, of) for group, of in groups.items() if group is not None]
    return iter(sorted(named, key=lambda item: (len(item[0]) if item[0].isdecimal() else 0, item[0])))


def _rate(hits: int, n: int) -> float | None:
    return hits / n if n else None


def _class_rows(
    measure: str, taxonomy: str | None, classes: Sequence[str], total: Confusion
) -> Iterator[dict[str, Any]]:
    """Yield a row for each class."""
    samples, labels, hits = total.samples, total.labels, total.hits
    got: dict[int, Rows] = {}
    for pair, count in zip(total.pairs.tolist(), total.counts.tolist(), strict=True):
        got.setdefault(pair // total.k, []).append({"label": classes[pair % total.k], "n": count})
    for index, name in enumerate(classes):
        n, labelled, right = int(samples[index]), int(labels[index]), int(hits[index])
        low, high = wilson(right, n) or (None, None)
        yield {
            "measure": measure,
            "taxonomy": taxonomy,
            "class_index": index,
            "class": name,
            "n": n,
            "labelled": labelled,
            "hits": right,
            "recall": _rate(right, n),
            "recall_low": low,
            "recall_high": high,
            "precision": _rate(right, labelled),
            "labels": sorted(got.get(index, []), key=lambda one: (-one["n"], one["label"])),
        }
