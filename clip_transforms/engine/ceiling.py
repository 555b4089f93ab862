"""The ceiling: the rate of one process on decoded batches with nothing else running, measured on the first batches."""

from __future__ import annotations

import threading

_WARM_UP_BATCHES = 1
_MIN_BATCHES, _MIN_SECONDS = 5, 2.0


class Ceiling:
    """Measures the first forward passes of a process, before its decode pool runs ahead.

    While `measuring` is true, `DecodeAhead` yields one batch at a time and decodes nothing else. The batches are the
    run's own; none is thrown away.
    """

    def __init__(self):
        """Start measuring with the first batch."""
        self.measuring = True
        self._batches, self._measured, self._seconds = 0, 0, 0.0
        self._samples, self._pictures = 0, 0
        self._captions_of, self._caption_seconds = 0, 0.0
        self._lock = threading.Lock()

    def add(self, samples: int, pictures: int, seconds: float) -> None:
        """Count a batch of pictures; its time counts only while `measuring`, the numbers always do.

        Args:
            samples: the number of samples in the batch.
            pictures: the number of pictures among them.
            seconds: the time of the forward pass.
        """
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
        """Count the time for the captions of so many samples.

        All captions count, not just the first: they are embedded many batches at a time, while the decoders rest
        because enough pictures are waiting.
        """
        with self._lock:
            self._captions_of += samples
            self._caption_seconds += seconds

    @property
    def rate(self) -> float | None:
        """Samples per second; None if too few batches were measured, or the measured ones had no pictures."""
        with self._lock:
            if self.measuring or not self._captions_of or not self._measured:
                return None
            seconds = self._seconds / self._measured * self._pictures / self._samples
            seconds += self._caption_seconds / self._captions_of
            return 1 / seconds if seconds else None
