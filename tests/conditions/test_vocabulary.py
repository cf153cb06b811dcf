"""Vocabularies: what is kept, in which order, and that texts come back from their numbers."""

import pytest

from aigc.conditions.vocabulary import UNKNOWN, Tokenizer, build_vocabulary, words_of
from aigc.errors import UserError

CAPTIONS = ["a small red circle", "a large red square", "a small blue circle above a large red star!"]


def back(tokenizer, text):
    """The text that numbers stand for."""
    entries = [tokenizer.entries[number] for number in tokenizer(text)]
    return " ".join(entries) if tokenizer.kind == "words" else "".join(entries).strip()


def test_words_come_by_frequency_then_spelling_and_order_of_captions_does_not_matter():
    vocabulary = build_vocabulary(CAPTIONS)
    assert vocabulary[:5] == [UNKNOWN, "a", "red", "circle", "large"]
    assert vocabulary == build_vocabulary(reversed(CAPTIONS))
    assert build_vocabulary(CAPTIONS, size=3) == [UNKNOWN, "a", "red"]


@pytest.mark.parametrize("kind", ["words", "bytepairs"])
def test_captions_come_back_from_their_numbers(kind):
    tokenizer = Tokenizer(build_vocabulary(CAPTIONS, kind=kind), kind=kind)
    for caption in CAPTIONS:
        assert back(tokenizer, caption) == " ".join(words_of(caption))
        assert tokenizer.unknown(caption) == []
    assert tokenizer("A SMALL   Red circle") == tokenizer(CAPTIONS[0])
    assert tokenizer("") == tokenizer("  ") == []


def test_unknown_words_are_unknown_or_fall_apart_into_known_pieces():
    words = Tokenizer(build_vocabulary(CAPTIONS), kind="words")
    assert words("a green circle") == [words.number["a"], 0, words.number["circle"]]
    assert words.unknown("a green circle") == ["green"]
    pieces = Tokenizer(build_vocabulary(CAPTIONS, kind="bytepairs"), kind="bytepairs")
    assert back(pieces, "scale") == "scale" and 0 not in pieces("scale")
    assert pieces.unknown("a scale, with ß") == [",", "with", "ß"]
    assert len(pieces("red")) == 1 < len(pieces("scale"))


def test_byte_pairs_join_the_most_frequent_neighbours_first():
    vocabulary = build_vocabulary(["low low low lower newest newest newest newest"], kind="bytepairs", size=100)
    letters = ["e", " l", " n", "o", "r", "s", "t", "w"]
    assert sorted(vocabulary[1 : 1 + len(letters)]) == sorted(letters)
    # counts: "we" 1+4, "wes" etc. 4; " lo", "low" 4: the first join is "w"+"e" with 5
    assert vocabulary[1 + len(letters)] == "we"
    assert {" newest", " low"} <= set(vocabulary)
    assert " lower" not in vocabulary  # met once


def test_impossible_vocabularies_are_refused():
    with pytest.raises(UserError, match="did you mean 'bytepairs'"):
        build_vocabulary(CAPTIONS, kind="bytepair")
    with pytest.raises(UserError, match="too small for"):
        build_vocabulary(CAPTIONS, kind="bytepairs", size=5)
