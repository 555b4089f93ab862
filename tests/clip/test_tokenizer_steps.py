"""The cost of byte-pair merging is counted in steps, not in seconds."""

import pytest

from clip_transforms.clip import tokenizer as tokenizer_module
from clip_transforms.clip.tokenizer import default_tokenizer


class CountingRanks(dict):
    """The merges, with a count of look-ups."""

    asked = 0

    def __contains__(self, pair):
        self.asked += 1
        return super().__contains__(pair)


@pytest.mark.parametrize("unit", ["a", "ab", "é", "😀", "abcdefgh", "the"], ids=str)
def test_a_caption_of_one_long_word_merges_in_n_log_n_steps(unit):
    def steps(length):
        ranks = CountingRanks(default_tokenizer()._ranks)
        symbols = [default_tokenizer()._byte_symbols[byte] for byte in (unit * length).encode()[:length]]
        tokenizer_module._merge(symbols, ranks)
        return ranks.asked

    limit = 16_384
    assert steps(limit) <= 4 * limit  # each place is looked up once when it is created; the factor log n is in the heap
    assert steps(limit) <= 2.2 * steps(limit // 2)


def test_a_caption_at_the_limit_of_bytes_is_cut_and_gives_the_same_tokens_as_its_beginning():
    ids, cut = default_tokenizer().encode("x" * 16_384)
    assert cut and len(ids) == 77


def test_the_merges_make_every_word_of_the_vocabulary_whole():
    """So a word that is in the vocabulary needs no merges."""
    tokenizer = default_tokenizer()
    words = [symbol for symbol in tokenizer._ids if symbol.endswith("</w>")]
    assert len(words) > 30_000
    for word in words:
        symbols = list(word.removesuffix("</w>"))
        symbols[-1] += "</w>"
        assert tokenizer_module._merge(symbols, tokenizer._ranks) == [word]
