"""A linear probe: logistic regression on embeddings, its regularisation chosen as in the CLIP paper."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import warnings
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from sklearn.linear_model import LogisticRegression

ITERATIONS = 1_000
_DECADES, _STEPS = 6, 8  # C goes from 1e-6 to 1e6 in eighths of a decade
GRID = 10.0 ** (np.arange(-_DECADES * _STEPS, _DECADES * _STEPS + 1) / _STEPS)  # 97 values
_FIRST = 2 * _STEPS  # places between the seven values that are tried first
MOST_FITS = 2 * _DECADES // 2 + 1 + 2 * 4 + 1  # seven values, two for each halving of the interval, and the last fit


@dataclasses.dataclass(frozen=True)
class Split:
    """Some samples.

    Attributes:
        vectors: float32 [n, d].
        classes: int64 [n].
    """

    vectors: np.ndarray
    classes: np.ndarray

    def __add__(self, other: Split) -> Split:
        """Return the samples of both."""
        pairs = ((self.vectors, other.vectors), (self.classes, other.classes))
        return Split(*(np.concatenate(pair) for pair in pairs))


@dataclasses.dataclass(frozen=True)
class Probe:
    """A fitted probe.

    Attributes:
        model: the fit on training and validation samples.
        tried: C → accuracy on the validation samples, in the order of trying.
        converged: whether the last fit ended before ITERATIONS.
    """

    model: LogisticRegression
    tried: dict[float, float]
    converged: bool


def fit(samples: Split, c: float) -> LogisticRegression:
    """Fit logistic regression: the weights W and intercepts that minimise ½‖W‖² + C · Σ cross entropy.

    It is scikit-learn's `LogisticRegression` with its L-BFGS and at most ITERATIONS iterations, as in the paper
    (Radford et al. 2021, appendix A.3). The intercepts are not regularised. It computes in the type of the vectors.

    Args:
        samples: of two classes or more.
        c: C, larger than 0; a small one regularises more.
    """
    from sklearn.linear_model import LogisticRegression  # takes seconds to import, and not every command needs it

    return LogisticRegression(C=c, max_iter=ITERATIONS).fit(samples.vectors, samples.classes)


def probe(train: Split, validation: Split, fitted: Callable[[], object] = lambda: None, threads: int = 1) -> Probe:
    """Choose C on validation samples, and fit on these and the training samples.

    C is chosen by the paper's parametric search (appendix A.3): first seven values from 1e-6 to 1e6, two decades apart;
    then the interval around the best is halved until it is an eighth of a decade. Of values that are equally good, the
    smallest wins. Fits are in float64, so that the order in which a library adds up changes no prediction.

    Args:
        train: training samples, of two classes or more.
        validation: validation samples, at least one.
        fitted: called after each of at most MOST_FITS fits.
        threads: number of fits at a time; their products should then use one thread each.
    """
    from sklearn.exceptions import ConvergenceWarning  # as above

    train, validation = (Split(of.vectors.astype(np.float64), of.classes) for of in (train, validation))
    tried: dict[int, float] = {}

    def accuracy(place: int) -> float:
        model = fit(train, float(GRID[place]))
        return float(np.mean(model.predict(validation.vectors) == validation.classes))

    def best_of(places: Iterable[int]) -> int:
        new = [place for place in places if 0 <= place < len(GRID) and place not in tried]
        for place, found in zip(new, pool.map(accuracy, new), strict=True):
            tried[place] = found
            fitted()
        return min(tried, key=lambda place: (-tried[place], place))

    with warnings.catch_warnings(), concurrent.futures.ThreadPoolExecutor(threads) as pool:
        warnings.simplefilter("ignore", ConvergenceWarning)  # `converged` says so
        best, step = best_of(range(0, len(GRID), _FIRST)), _FIRST // 2
        while step:
            best, step = best_of((best - step, best + step)), step // 2
        model = fit(train + validation, float(GRID[best]))
    fitted()
    accuracies = {float(GRID[place]): found for place, found in tried.items()}
    return Probe(model, accuracies, int(model.n_iter_.max()) < ITERATIONS)
