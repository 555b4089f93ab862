"""What one process could reach on decoded batches, nothing else running; measured on the run's own first batches."""

from __future__ import annotations

import threading

_WARM_UP_BATCHES = 1
_MIN_BATCHES, _MIN_SECONDS = 5, 2.0


class Ceiling:
    """Watches the first forward passes of a process, before its decode pool runs ahead.

    While `measuring`, `decode_ahead` hands out one batch at a time and decodes nothing else. No batch is thrown away.
    """

    def __init__(self):
        """Measure from the first batch on."""
        self.measuring = True
        self._batches, self._samples, self._seconds = 0, 0, 0.0
        self._lock = threading.Lock()

    def add(self, samples: int, seconds: float) -> None:
        """One forward pass of `samples` in `seconds`, made while `measuring`."""
        with self._lock:
            if not self.measuring:
                return
            self._batches += 1
            if self._batches <= _WARM_UP_BATCHES:
                return
            self._samples += samples
            self._seconds += seconds
            if self._batches - _WARM_UP_BATCHES >= _MIN_BATCHES or self._seconds >= _MIN_SECONDS:
                self.measuring = False

    @property
    def rate(self) -> float | None:
        """Samples per second, or None while too few batches were seen."""
        return None if self.measuring or not self._seconds else self._samples / self._seconds
