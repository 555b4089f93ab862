"""One session of `browse`: loads the dataset in the background, and then answers. It knows nothing of HTTP."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from clip_transforms.browsing.answers import Answers
from clip_transforms.browsing.loaded import Loaded
from clip_transforms.browsing.loading import load
from clip_transforms.browsing.pictures import Pictures, Want
from clip_transforms.browsing.plan import BrowsePlan
from clip_transforms.browsing.question import Question, QuestionError
from clip_transforms.browsing.sample import known_of
from clip_transforms.browsing.towers import Towers
from clip_transforms.shards.read_again import Sources
from clip_transforms.shards.wanted import Picture, Wanted

_MOST_NAMED = 100_000  # rows of a selection that a page may download
_LOGGER = logging.getLogger(__name__)


class Session:
    """A dataset that a person looks at.

    Attributes:
        plan: the dataset.
        towers: the model.
        progress: which fraction is loaded.
        failure: why it cannot be loaded; empty if nothing went wrong.
    """

    def __init__(self, plan: BrowsePlan):
        """Load nothing yet."""
        self.plan, self.towers = plan, Towers(plan)
        self.progress, self.failure = 0.0, ""
        self._loaded: Loaded | None = None
        self._answers: Answers | None = None
        self._pictures: Pictures | None = None
        self._stack = contextlib.ExitStack()
        self._sources = Sources(plan.reader, cache=str(plan.cache.path.parent / "tars"))

    def start(self) -> None:
        """Load the dataset, and then the text tower, in a thread."""
        threading.Thread(target=self._load_all, name="loading", daemon=True).start()

    def _load_all(self) -> None:
        self.load()
        if not self.failure:
            with contextlib.suppress(QuestionError):  # `towers.failure` has the reason, and the page shows it
                self.towers.load(vision=False)

    def load(self) -> None:
        """Load the dataset; `failure` says what is wrong with it."""
        try:
            loaded = load(self.plan, self._report, self._stack)
            self._answers = Answers(loaded, self.towers)
            self._pictures = Pictures(loaded, self._read)
            self._loaded = loaded
        except (ValueError, OSError, pa.ArrowException, MemoryError) as error:
            self.failure = str(error) or "there is not enough memory for this dataset"
            _LOGGER.warning("the dataset cannot be loaded: %s", self.failure)

    def _report(self, progress: float) -> None:
        self.progress = progress

    def _read(self, part: str, shard: str, wanted: Sequence[Wanted]) -> Iterator[Picture]:
        """Read pictures of a part. What is lost is looked for once more, in case its source has changed."""
        by_row, again = {one.row: one for one in wanted}, True
        for picture in self._sources.pictures(part, shard, wanted):
            if picture.lost and again:
                picture = self._sources.picture(part, shard, by_row[picture.row])
                again = not picture.lost  # else the source is as it was, and asking for each would take long
            yield picture

    @property
    def loaded(self) -> Loaded:
        """The dataset.

        Raises:
            QuestionError: while it is being loaded.
        """
        if self._loaded is None:
            raise QuestionError(self.failure or "the dataset is still being read; try again in a moment")
        return self._loaded

    def state(self) -> dict[str, Any]:
        """Return what a page has to know, as JSON values."""
        plan, loaded = self.plan, self._loaded
        found: dict[str, Any] = {
            "dataset": plan.dataset.uri,
            "name": plan.dataset.uri.rstrip("/").rpartition("/")[2],
            "ready": loaded is not None,
            "progress": round(self.progress, 3),
            "failure": self.failure,
            "words": "ready" if self.towers.is_ready else self.towers.failure or "loading",
        }
        if loaded is None:
            return found
        return found | {
            "rows": int(loaded.chosen.sum()),
            "of": len(loaded.chosen),
            "version": plan.digest[:12],
            "model": plan.made["model"],
            "against": plan.searched.against,
            "index": plan.index is not None,
            "selection": list(plan.selection.places),
            "labels": loaded.labels,
            "scores": loaded.scores,
        }

    def answer(self, asked: Any) -> dict[str, Any]:
        """Answer a page's question, and begin to read its pictures."""
        loaded = self.loaded
        assert self._answers is not None and self._pictures is not None
        dataset, classes = self.plan.dataset, self.plan.searched.classes
        question = Question.of(asked, dataset.embed_dim, len(loaded.chosen), classes)
        found = self._answers.answer(question)
        self._pictures.expect(row["id"] for row in found["rows"] if row["picture"])
        return found

    def embed(self, data: bytes) -> bytes:
        """Embed a picture that was dropped: float32 [d] as bytes."""
        return self.towers.of_picture(data).astype("<f4").tobytes()

    def picture(self, place: int, whole: bool) -> Any:
        """Ask for the picture of a row: a Future of `Shown`."""
        self._check(place)
        assert self._pictures is not None
        return self._pictures.ask(Want(place, whole))

    def sample(self, place: int) -> dict[str, Any]:
        """Return everything that is known of a row, as JSON values."""
        self._check(place)
        return known_of(self.loaded, place)

    def named(self, places: Any) -> list[tuple[str, int, str]]:
        """Return shard, row and key of some rows, for a file that `--selection` takes."""
        if not isinstance(places, list) or not 0 < len(places) <= _MOST_NAMED:
            raise QuestionError(f"a selection is a list of 1 to {_MOST_NAMED:,} rows")
        for place in places:
            self._check(place)
        rows = zip(places, self.loaded.rows(places), strict=True)
        return [(self.loaded.shard_of(place), row["row"], row["key"]) for place, row in rows]

    def _check(self, place: Any) -> None:
        if not isinstance(place, int) or isinstance(place, bool) or not 0 <= place < len(self.loaded.chosen):
            raise QuestionError(f"there is no row {place!r:.40}")

    def close(self) -> None:
        """Stop reading pictures, and remove temporary files."""
        if self._pictures is not None:
            self._pictures.close()
        self._sources.close()
        self.plan.cache.give_up()
        self._stack.close()
