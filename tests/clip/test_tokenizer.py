"""The tokenizer compared with the published one, loaded by path."""

import random

import numpy as np
import pytest
from conftest import published_module
from hypothesis import given, settings
from hypothesis import strategies as st

from clip_transforms.clip.tokenizer import END, START, Tokenizer, default_tokenizer
from clip_transforms.demo.scenes import random_scene


@pytest.fixture(scope="module")
def published():
    return published_module("simple_tokenizer").SimpleTokenizer()


def ids(text):
    return default_tokenizer().encode(text, context_length=1 << 30)[0][1:-1]


def fuzzed(rng):
    alphabets = (
        "abcdefghijklmnopqrstuvwxyz ABC'",
        " the cat's don't we'll I'm you've they'd",
        "0123456789.,;:!?-_()[]{}",
        "àéîõüß ÀÉÎ ñ ç ø å",
        "日本語中文한국어 ひらがな",
        "привет мир שלום مرحبا",
        "😀🎉👩‍👩‍👧🏳️‍🌈❤️",
        "&amp;&lt;&#39;&eacute;&amp;amp;lt;",
        "\t\n\r\x0b\x00\x1b\u2028\u00a0\u200b",
        "Ã©â€™Ã¼ schÃ¶n",
    )
    pieces = []
    for _ in range(rng.randint(0, 6)):
        alphabet = rng.choice(alphabets)
        pieces.append("".join(rng.choice(alphabet) for _ in range(rng.randint(1, 12))))
    if rng.random() < 0.2:
        pieces.append("".join(chr(rng.choice([*range(0xD800), *range(0xE000, 0x11000)])) for _ in range(4)))
    if rng.random() < 0.05:
        pieces.append(rng.choice(["<|startoftext|>", "<|endoftext|>", "&amp;eacute;"]))
    return rng.choice(["", " "]).join(pieces)


@pytest.mark.parametrize(
    "seed, count",
    [(0, 1_000), pytest.param(1, 100_000, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])],  # slow: minutes
)
def test_fuzzed_strings_give_the_published_tokens(seed, count, published):
    rng = random.Random(seed)
    for _ in range(count):
        text = fuzzed(rng)
        assert ids(text) == published.encode(text), repr(text)


def test_every_caption_of_the_demo_gives_the_published_tokens(published):
    rng = np.random.default_rng(0)
    captions = {random_scene(rng).caption(kind) for _ in range(3000) for kind in range(7)}
    assert len(captions) > 1500
    for caption in captions:
        assert ids(caption) == published.encode(caption)


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=60))
def test_any_text_gives_the_published_tokens(text):
    assert ids(text) == _published().encode(text)


@settings(max_examples=300, deadline=None)
@given(st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=60))
def test_any_plain_text_gives_the_published_tokens(text):
    assert ids(text) == _published().encode(text)


@pytest.mark.parametrize(
    "text", ["It's  we'LL don'T 'S", "a <|STARTOFTEXT|>b<|endoftext|> c", " a\tb", "R&amp;B", "a1b22.-c"]
)
def test_what_is_special_in_plain_text_gives_the_published_tokens(text):
    assert ids(text) == _published().encode(text)


def _published(cache=[]):  # noqa: B006 (hypothesis takes no module fixture)
    if not cache:
        cache.append(published_module("simple_tokenizer").SimpleTokenizer())
    return cache[0]


def test_the_worked_example_of_the_docstring():
    assert Tokenizer().encode("a red star") == ([49406, 320, 736, 1565, 49407], False)


def test_a_batch_is_padded_to_its_longest_caption_and_a_long_one_is_cut():
    tokens = default_tokenizer().tokenize(["a cat", "", "word " * 100])
    assert tokens.ids.dtype == np.int32 and tokens.ids.shape == (3, 77)
    assert tokens.lengths.tolist() == [4, 2, 77]
    assert tokens.truncated.tolist() == [False, False, True]
    assert tokens.ids[1, :3].tolist() == [START, END, 0]
    assert tokens.ids[2, -1] == END
    assert default_tokenizer().tokenize(["a cat", "dog"]).ids.shape == (2, 4)


@pytest.mark.parametrize("words, cut", [(75, False), (76, True)])
def test_seventy_five_tokens_fit_and_one_more_does_not(words, cut):
    encoded, truncated = default_tokenizer().encode("cat " * words)
    assert (len(encoded), truncated) == (77, cut)
    assert encoded[-1] == END


@pytest.mark.timeout(30)
def test_a_very_long_word_does_not_take_quadratic_time():
    word = "".join(random.Random(0).choice("abcdefgh") for _ in range(100_000))
    assert len(ids(word)) > 20_000  # the published code would take hours here, and this test's timeout ends it


def test_another_vocabulary_is_refused(tmp_path):
    path = tmp_path / "vocabulary.gz"
    path.write_bytes(b"something else")
    with pytest.raises(ValueError, match="reinstall openai-clip"):
        Tokenizer(path)


@pytest.mark.parametrize(
    "caption, meaning",
    [
        ("a &#" + "9" * 5000 + "; cat", "a \ufffd cat"),
        ("a &amp;#" + "9" * 5000 + " cat", "a \ufffd cat"),
        ("a &#" + "0" * 5000 + "65; cat", "a A cat"),
        ("&#" + "0" * 5000 + ";", "\ufffd"),
    ],
    ids=["too large", "escaped twice", "leading zeros", "zero"],
)
def test_a_character_reference_may_have_thousands_of_digits(caption, meaning):
    assert default_tokenizer().encode(caption) == default_tokenizer().encode(meaning)
