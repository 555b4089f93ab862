"""What counts as a duplicate, and who stays: the settings of `deduplicate`."""

from __future__ import annotations

import dataclasses
from typing import Any

from clip_transforms import storage
from clip_transforms.parts.dataset import Dataset
from clip_transforms.select.blocks import check_faiss
from clip_transforms.select.keepers import KEEP
from clip_transforms.select.near import RULES
from clip_transforms.select.selection import Selection

MODALITIES_OF = {"exact": (), "image": ("image",), "caption": ("caption",), "pair": ("image", "caption")}
THRESHOLD, RECALL, COMPONENTS = 0.95, 0.999, RULES[0]


@dataclasses.dataclass(frozen=True)
class Duplicates:
    """Settings that have been checked; `Duplicates.of` makes them. They are small and can be sent to workers.

    Attributes:
        by: one of MODALITIES_OF: `exact` for equal files of images; or what must be near.
        keep: who stays of a group.
        threshold: smallest cosine of near duplicates.
        rule: one of RULES.
        recall: share of the pairs at the threshold that shall be found.
        seed: seed of the blocks and of samples.
        measure_recall: number of rows that are compared with all others to see what was found.
        selection: which rows are looked at.
    """

    by: str
    keep: str
    threshold: float
    rule: str
    recall: float
    seed: int
    measure_recall: int
    selection: Selection

    @classmethod
    def of(
        cls,
        dataset: Dataset,
        by: str = "exact",
        keep: str | None = None,
        threshold: float | None = None,
        rule: str | None = None,
        recall: float | None = None,
        seed: int | None = None,
        measure_recall: int | None = None,
        selection: storage.Places = (),
    ) -> Duplicates:
        """Check the settings, and that this machine can find near duplicates if they are asked for.

        Raises:
            ValueError: or one of its subclasses, in one sentence.
        """
        _check_choice("by", by, tuple(MODALITIES_OF))
        near_only = {
            "threshold": threshold,
            "rule": rule,
            "recall": recall,
            "seed": seed,
            "measure_recall": measure_recall,
        }
        for name, value in near_only.items():
            if by == "exact" and value is not None:
                raise ValueError(
                    f"--{name} is {value}, but --by exact compares files, not embeddings; give --by image, caption or "
                    "pair"
                )
        _check_choice("rule", rule or COMPONENTS, RULES)
        _check_choice("keep", keep or KEEP[0], KEEP)
        if rule == "semdedup" and (keep is not None or measure_recall is not None or recall is not None):
            name = "keep" if keep is not None else "recall" if recall is not None else "measure_recall"
            raise ValueError(
                f"--{name} has no meaning with --rule semdedup, which says itself who stays and compares rows of one "
                "block alone; omit it"
            )
        made = cls(
            by,
            keep or KEEP[0],
            _fraction("threshold", THRESHOLD if threshold is None else threshold),
            rule or COMPONENTS,
            _fraction("recall", RECALL if recall is None else recall),
            storage.as_setting(0 if seed is None else seed, "seed", "int"),
            storage.as_setting(measure_recall or 0, "measure_recall", "int"),
            Selection.open(dataset, selection),
        )
        if made.seed < 0 or made.measure_recall < 0:
            name, value = ("seed", made.seed) if made.seed < 0 else ("measure_recall", made.measure_recall)
            raise ValueError(f"--{name} is {value}, but it must be 0 or more")
        if made.modalities:
            check_faiss(made.most_rows(dataset))
        return made

    @property
    def modalities(self) -> tuple[str, ...]:
        """What must be near: `image`, `caption` or both; nothing if files must be equal."""
        return MODALITIES_OF[self.by]

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the outcome, as JSON values."""
        near = {"threshold": self.threshold, "rule": self.rule, "seed": self.seed}
        components = {"keep": self.keep, "recall": self.recall, "measure_recall": self.measure_recall}
        used = {"by": self.by, "selection": list(self.selection.identity)}
        if not self.modalities:
            return used | {"keep": self.keep}
        return used | near | (components if self.rule == COMPONENTS else {})

    def most_rows(self, dataset: Dataset) -> int:
        """Return a bound of the number of rows that are compared, from footers alone."""
        names = [f"{modality}.embedded" for modality in self.modalities] or ["rows"]
        rows = min(dataset.counts[name] for name in names)
        return min(rows, self.selection.most_rows(rows))


def _check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"--{name} is {value!r}, but it must be {', '.join(choices[:-1])} or {choices[-1]}")


def _fraction(name: str, value: Any) -> float:
    """Return a number above 0 and at most 1."""
    number = float(storage.as_setting(value, name, "float"))
    if not 0 < number <= 1:
        raise ValueError(f"--{name} is {value}, but it must be above 0 and at most 1")
    return number
