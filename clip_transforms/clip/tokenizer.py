"""Byte-pair encoding over CLIP's published vocabulary: caption → tokens.

The vocabulary file comes with the distribution `openai-clip` and is found through importlib.metadata. The package
itself is never imported, since that needs torchvision. The rules are from Sennrich et al. 2016 (byte-pair encoding),
Radford et al. 2019 (on bytes), and the published `simple_tokenizer.py` (clean-up, pattern and vocabulary order).
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import heapq
import html
import importlib.metadata
import itertools
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import ftfy
import numpy as np
import regex

VOCABULARY_FILE = "bpe_simple_vocab_16e6.txt.gz"
VOCABULARY_SHA256 = "924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a"
VOCABULARY_SIZE = 49408
CONTEXT_LENGTH = 77
START, END = 49406, 49407  # END is the largest id, so argmax finds its place in a row
_SPECIAL = {"<|startoftext|>": START, "<|endoftext|>": END}
_WORD_END = "</w>"
_PATTERN = regex.compile(
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+", regex.IGNORECASE
)

# Most captions need no repair: printable ASCII without the sign with which HTML's references begin. Neither ftfy nor
# html changes such a text, and its words are found without Unicode's tables, in a fifth of the time.
_PLAIN = re.compile(r"[ -%'-~]*").fullmatch
_PLAIN_WORDS = re.compile(r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[a-z]+|[0-9]|[^ a-z0-9]+").findall
# Python does not parse a number of more than 4,300 digits, and the published code fails at such a character reference.
# html.unescape replaces every number that is no character with the replacement character; we do the same.
_LONG_REFERENCE = re.compile(r"&#([0-9]{640,});?")
_REPLACEMENT, _MOST_DIGITS = "\ufffd", 7  # 0x10FFFF, the last character, has 7 digits


class Tokens(NamedTuple):
    """A batch of tokenized captions.

    Attributes:
        ids: int32 [n, t], start token first, end token last, then zeros; t is the length of the longest caption, at
            most 77.
        lengths: int16 [n], the number of tokens in each caption, including start and end, 2 to 77.
        truncated: bool [n], true for captions that were cut.
    """

    ids: np.ndarray
    lengths: np.ndarray
    truncated: np.ndarray


def clean(caption: str) -> str:
    """Repair mojibake, unescape HTML twice, fold white space and convert to lower case, in the published order."""
    text = _unescape(_unescape(ftfy.fix_text(caption))).strip()
    return regex.sub(r"\s+", " ", text).strip().lower()


def _unescape(text: str) -> str:
    return html.unescape(_LONG_REFERENCE.sub(_short_reference, text))


def _short_reference(reference: re.Match) -> str:
    digits = reference[1].lstrip("0")
    return _REPLACEMENT if len(digits) > _MOST_DIGITS else f"&#{digits or 0};"


class Tokenizer:
    """CLIP's tokenizer. `Tokenizer().encode("a red star")` → ([49406, 320, 736, 1565, 49407], False)."""

    def __init__(self, vocabulary: Path | None = None):
        """Read the merges.

        Args:
            vocabulary: the published merges, gzipped; by default the file from the installed `openai-clip`.
        Raises:
            FileNotFoundError: if `openai-clip` is not installed with its data file.
            ValueError: if the file is not the published one.
        """
        data = Path(vocabulary or _vocabulary_path()).read_bytes()
        if (found := hashlib.sha256(data).hexdigest()) != VOCABULARY_SHA256:
            raise ValueError(f"the vocabulary has SHA-256 {found}, not {VOCABULARY_SHA256}; reinstall openai-clip")
        self._byte_symbols = _byte_symbols()
        alphabet = list(self._byte_symbols.values())
        # The file's first line is a comment. CLIP uses only as many merges as fill the vocabulary.
        lines = gzip.decompress(data).decode("utf-8").split("\n")
        lines = lines[1 : 1 + VOCABULARY_SIZE - len(_SPECIAL) - 2 * len(alphabet)]
        merges = [(first, second) for first, second in map(str.split, lines)]
        symbols = alphabet + [s + _WORD_END for s in alphabet] + ["".join(m) for m in merges] + list(_SPECIAL)
        self._ids = {symbol: i for i, symbol in enumerate(symbols)}
        self._ranks = {merge: rank for rank, merge in enumerate(merges)}
        # The cache is bounded, since the web has more distinct words than a worker can hold in memory.
        self._encode_word = functools.lru_cache(maxsize=1 << 16)(self._encode_word_uncached)

    def encode(self, caption: str, context_length: int = CONTEXT_LENGTH) -> tuple[list[int], bool]:
        """Encode one caption.

        Args:
            caption: any text.
            context_length: the largest number of tokens to keep, including start and end.
        Returns:
            The token ids, and whether the caption was cut. A cut caption still ends in the end token.
        """
        ids = [START]
        for word in _words(caption):
            ids += self._encode_word(word)
            if len(ids) >= context_length:  # no room is left, since the end token is still to come
                break
        if len(ids) >= context_length:
            return [*ids[: context_length - 1], END], True
        return [*ids, END], False

    def tokenize(self, captions: Sequence[str], context_length: int = CONTEXT_LENGTH) -> Tokens:
        """Encode a batch of captions, padded with zeros to the longest of them."""
        encoded = [self.encode(caption, context_length) for caption in captions]
        lengths = np.array([len(row) for row, _ in encoded], np.int16)
        ids = np.zeros((len(encoded), lengths.max(initial=2)), np.int32)
        ids[np.arange(ids.shape[1]) < lengths[:, None]] = [*itertools.chain.from_iterable(row for row, _ in encoded)]
        return Tokens(ids, lengths, np.array([cut for _, cut in encoded], bool))

    def _encode_word_uncached(self, word: str) -> tuple[int, ...]:
        if word in _SPECIAL:
            return (_SPECIAL[word],)
        symbols = [self._byte_symbols[byte] for byte in word.encode("utf-8")]
        symbols[-1] += _WORD_END
        # The merges make every word of the vocabulary whole; a test tries each.
        if (whole := self._ids.get("".join(symbols))) is not None:
            return (whole,)
        return tuple(self._ids[symbol] for symbol in _merge(symbols, self._ranks))


def _words(caption: str) -> Iterable[str]:
    """Cut a caption into words as `_PATTERN` does, once it is clean."""
    if _PLAIN(caption):
        return _PLAIN_WORDS(caption.lower())
    return (match[0] for match in _PATTERN.finditer(clean(caption)))


def _merge(symbols: list[str], ranks: dict[tuple[str, str], int]) -> list[str]:
    """Apply the merges in order of rank, each at all its places from left to right, in O(n log n)."""
    after = [*range(1, len(symbols)), None]
    before = [None, *range(len(symbols) - 1)]
    alive = [True] * len(symbols)
    heap: list[tuple[int, int, str, str]] = []

    def push(left: int | None, right: int | None) -> None:
        if left is not None and right is not None:
            pair = (symbols[left], symbols[right])
            if pair in ranks:
                heapq.heappush(heap, (ranks[pair], left, *pair))

    for place in range(len(symbols) - 1):
        push(place, place + 1)
    while heap:
        # As published, apply a merge at all its places before looking at the new pairs that it creates.
        rank = heap[0][0]
        places = []
        while heap and heap[0][0] == rank:
            places.append(heapq.heappop(heap))
        for _, left, first, second in places:
            right = after[left]
            if not alive[left] or right is None or (symbols[left], symbols[right]) != (first, second):
                continue  # an earlier merge used one of the two symbols
            symbols[left] = first + second
            alive[right] = False
            after[left] = after[right]
            if after[left] is not None:
                before[after[left]] = left
            push(before[left], left)
            push(left, after[left])
    return [symbol for symbol, lives in zip(symbols, alive, strict=True) if lives]


def _byte_symbols() -> dict[int, str]:
    """Map bytes to printable characters, in vocabulary order.

    A printable byte maps to itself; the others map to the characters from U+0100 on.
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}


def _vocabulary_path() -> Path:
    try:
        files = importlib.metadata.files("openai-clip") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.name == VOCABULARY_FILE:
            return Path(file.locate())
    raise FileNotFoundError(
        f"{VOCABULARY_FILE} was not found; it comes with the package openai-clip: run `pip install openai-clip`"
    )


@functools.lru_cache(maxsize=1)
def default_tokenizer() -> Tokenizer:
    """Return the tokenizer with the installed vocabulary, which is read once per process."""
    return Tokenizer()
