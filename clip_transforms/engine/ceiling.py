"""What one process could reach on decoded batches, nothing else running; measured on the run's own first batches."""

from __future__ import annotations

import threading

_WARM_UP_BATCHES = 1
_MIN_BATCHES, _MIN_SECONDS = 5, 2.0


class Ceiling:
    """Watches the first forward passes of a process, before its decode pool runs ahead.

    While `measuring`, `DecodeAhead` hands out one batch at a time and decodes nothing else. No batch is thrown away.
    """

    def __init__(self):
        """Measure from the first batch on."""
        self.measuring = True
        self._batches, self._measured, self._seconds = 0, 0, 0.0
        self._samples, self._pictures = 0, 0
        self._captions_of, self._caption_seconds = 0, 0.0
        self._lock = threading.Lock()

    def add(self, samples: int, pictures: int, seconds: float) -> None:
        """The `pictures` of so many samples took `seconds`; these count while `measuring`, the numbers always."""
        with self._lock:
            self._samples += samples
            self._pictures += pictures
            if not self.measuring:
                return
            self._batches += 1
            if self._batches <= _WARM_UP_BATCHES:
                return
            self._measured += pictures
            self._seconds += seconds
            if self._batches - _WARM_UP_BATCHES >= _MIN_BATCHES or self._seconds >= _MIN_SECONDS:
                self.measuring = False

    def add_captions(self, samples: int, seconds: float) -> None:
        """The captions of `samples` took `seconds`.

        They are embedded many batches at a time, when what was decoded ahead waits and the decoders rest, so all of
        them count.
        """
        with self._lock:
            self._captions_of += samples
            self._caption_seconds += seconds

    @property
    def rate(self) -> float | None:
        """Samples per second, or None while too little was seen, or the first batches had no pictures."""
        with self._lock:
            if self.measuring or not self._captions_of or not self._measured:
                return None
            seconds = self._seconds / self._measured * self._pictures / self._samples
            seconds += self._caption_seconds / self._captions_of
            return 1 / seconds if seconds else None
