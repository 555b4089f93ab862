"""Counts of what became of the samples of a part, a run or a dataset: one flat counter each, which can be added up.

Keys: `samples`; `rows` (of the embeddings); `<modality>.embedded`, `.rejected` and `.absent`;
`<modality>.rejected.<stage>: <reason>`; `caption.truncated`; `shards.rejected`; `column.<name>` (values of a user's
column that are not null); `field.<name>` (samples among the first of a unit without any image, or without any caption,
that have a field which was taken for neither); `note.<text>` for other things worth telling.

With `--captions all` also `captions.offered`, `.embedded`, `.rejected`, `.rejected.<stage>: <reason>` and `.truncated`,
which count captions, not samples: the first of each sample and all further ones.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping

from schemas.samples import MODALITIES

_UNCAST = ("values of --columns ", " that could not be cast")  # the note about a column, before and after its name
ALL = "captions"  # begins the counts of all captions; a sample has one `caption` and several `captions`
SEEN = "field."  # begins the counts, and the notes of a reader, that name fields
# The nouns that notes and kinds of files begin with, perhaps behind an extension.
_NOUNS = re.compile(
    r"^(?:\S+ )?"
    r"(?:columns|files|folders|images|keys|listings|members|pictures|pipes|rows|tars|texts|TFRecords|values)\b"
)
# What else changes in them where there is only one.
_ONE = {
    "that are ": "that is ",
    "that were ": "that was ",
    "that have ": "that has ",
    "that come ": "that comes ",
    "that share ": "that shares ",
    "which are ": "which is ",
    "which were ": "which was ",
    " is dot files": " is a dot file",
    " is further texts ": " is a further text ",
    "further texts of a picture": "further text of a picture",
    "and were not read; --caption": "and was not read; --caption",
    "JSON file and members": "JSON file or member",
    "pipe, sockets and devices": "pipe, socket or device",
    "apply turns them": "apply turns it",
    "so that most are ": "so that it is probably ",
    "scale them ": "scale it ",
}
_SHOWN = 12  # names of fields in a sentence


class BalanceError(RuntimeError):
    """Some samples are neither embedded nor rejected nor absent. This is a fault of this program, never of the data."""


def uncast(column: str) -> str:
    """Return the note about values of a user's column, written as for `--columns`, that its type cannot hold."""
    return f"{_UNCAST[0]}{column}{_UNCAST[1]}"


def uncast_columns(counts: Mapping[str, int]) -> set[str]:
    """Return the names of the user's columns whose type could not hold some values."""
    notes = [key.removeprefix("note.") for key in counts]
    specs = [note.removeprefix(_UNCAST[0]).removesuffix(_UNCAST[1]) for note in notes if note.startswith(_UNCAST[0])]
    return {re.split("[=:]", spec)[0] for spec in specs}


def takes_all_captions(counts: Mapping[str, int]) -> bool:
    """Return whether the counts are of a run or a part with `--captions all`."""
    return f"{ALL}.offered" in counts


def counted(number: int, one: str, many: str = "") -> str:
    """Return `1 unit`, `2 units`; `many` is for words whose plural is not `one` and an s."""
    return f"{number:,} {one if number == 1 else many or f'{one}s'}"


def counted_kind(number: int, kind: str) -> str:
    """Return `2 keys that come back`, `1 key that comes back`; `kind` begins with a noun in the plural, or has none."""
    if number == 1:
        noun = _NOUNS.search(kind)
        if noun:
            kind = f"{kind[: noun.end() - 1]}{kind[noun.end() :]}"
            for plural, singular in _ONE.items():
                kind = kind.replace(plural, singular)
    return f"{number:,} {kind}"


def check_balance(counts: Mapping[str, int], where: str) -> None:
    """Check that `samples = embedded + rejected + absent` for both modalities.

    Args:
        counts: counts, of which the reader counted `samples` and the writer the rest.
        where: what the counts belong to, for the message.
    Raises:
        BalanceError: if a modality does not add up, or with `--captions all` the sum over all captions.
    """
    for modality in MODALITIES:
        terms = {fate: counts.get(f"{modality}.{fate}", 0) for fate in ("embedded", "rejected", "absent")}
        if counts.get("samples", 0) != sum(terms.values()):
            sums = " + ".join(f"{count} {fate}" for fate, count in terms.items())
            raise BalanceError(
                f"{where}: {counts.get('samples', 0)} samples were read, but of their {modality}s {sums} were "
                "written; the part was not committed. Please report this"
            )
    offered, embedded, rejected = (counts.get(f"{ALL}.{fate}", 0) for fate in ("offered", "embedded", "rejected"))
    if offered != embedded + rejected:
        raise BalanceError(
            f"{where}: {offered} captions were read with --captions all, but {embedded} embedded + {rejected} rejected "
            "were written; the part was not committed. Please report this"
        )


def reject_fractions(counts: Mapping[str, int]) -> dict[str, float]:
    """Modality → rejected / (embedded + rejected), from 0 to 1; with `--captions all`, ALL → that of all captions."""
    fractions = {}
    for modality in (*MODALITIES, *([ALL] if takes_all_captions(counts) else [])):
        rejected = counts.get(f"{modality}.rejected", 0)
        offered = rejected + counts.get(f"{modality}.embedded", 0)
        fractions[modality] = rejected / offered if offered else 0.0
    return fractions


def has_rejects(counts: Mapping[str, int], stage: str) -> bool:
    """Whether anything was rejected at a stage, such as `read`, or at any stage if `stage` is `all`."""
    prefixes = tuple(f"{kind}.rejected.{'' if stage == 'all' else f'{stage}: '}" for kind in (*MODALITIES, ALL))
    return any(count for name, count in counts.items() if name.startswith(prefixes))


def absent_everywhere(counts: Mapping[str, int]) -> list[str]:
    """Return the modalities that no sample has, if there are samples."""
    samples = counts.get("samples", 0)
    return [modality for modality in MODALITIES if samples and counts.get(f"{modality}.absent", 0) == samples]


def seen_fields(counts: Mapping[str, int]) -> str:
    """Say which fields samples have instead of an image or a caption, the most frequent first; empty if none."""
    found = sorted((-count, name.removeprefix(SEEN)) for name, count in counts.items() if name.startswith(SEEN))
    names = [name for _, name in found[:_SHOWN]]
    if not names:
        return ""
    if len(found) > _SHOWN:
        names.append(f"{len(found) - _SHOWN:,} more")
    *first, last = names
    return f"samples have the fields {', '.join(first)} and {last}" if first else f"samples have the field {last}"


def add(counters: Iterable[Mapping[str, float]]) -> Counter:
    """Add counters up."""
    total: dict[str, float] = {}
    for counter in counters:  # Counter.update takes twice as long for small counters
        for key, count in counter.items():
            total[key] = total.get(key, 0) + count
    return Counter(total)
