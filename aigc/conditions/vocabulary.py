"""Words or byte pairs of the training captions as token numbers: plain strings that a checkpoint can store.

Captions are split into lower-case words and single punctuation marks. Byte pairs (Sennrich et al. 2016, on characters)
start from all characters of the captions and merge the most frequent neighbours; a word not seen in training is split
into pieces, down to characters. Anything still unknown becomes `<unknown>`.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise

from aigc.errors import UserError, choices
from aigc.wording import counted

UNKNOWN = "<unknown>"                                      # entry 0 of every vocabulary
KINDS = ("words", "bytepairs")
_WORD = re.compile(r"\w+|[^\w\s]")
_BEFORE = re.compile(r" ([.,;:!?)])")


def words_of(text: str) -> list[str]:
    """Lower-case words and single punctuation marks of a text."""
    return _WORD.findall(text.lower())


def build_vocabulary(captions: Iterable[str], *, kind: str = "words", size: int = 8192) -> list[str]:
    """Up to `size` entries, `<unknown>` first: the most frequent words, or characters and pieces in merge order.

    Pieces that begin a word begin with a space. The order of the captions does not matter.

    Raises:
        UserError: an unknown kind, or a size too small for the characters.
    """
    if kind not in KINDS:
        raise UserError(f"There is no model.text.words '{kind}': {choices(kind, KINDS)}")
    counts = Counter(word for caption in captions for word in words_of(caption))
    if kind == "words":
        return [UNKNOWN, *sorted(counts, key=lambda word: (-counts[word], word))[: size - 1]]
    letters = sorted({letter for word in counts for letter in _letters(word)})
    if len(letters) >= size:
        raise UserError(f"model.text.size={size} is too small for {counted(len(letters), 'character')}: give "
                        f"{2 * len(letters)}")
    return [UNKNOWN, *letters, *_join(counts, size - 1 - len(letters), set(letters))]


def _letters(word: str) -> list[str]:
    return [" " + word[0], *word[1:]]


def _join(counts: Counter[str], wanted: int, known: set[str]) -> list[str]:
    """New pieces in merge order; ties are broken by spelling."""
    words = [_letters(word) for word in counts]
    often = list(counts.values())
    pairs: Counter[tuple[str, str]] = Counter()
    where: dict[tuple[str, str], set[int]] = {}
    for k, word in enumerate(words):
        for pair in pairwise(word):
            pairs[pair] += often[k]
            where.setdefault(pair, set()).add(k)
    pieces: list[str] = []
    while len(pieces) < wanted:
        best = max(pairs, key=lambda pair: (pairs[pair], pair), default=None)
        if best is None or pairs[best] < 2:
            break
        if (piece := best[0] + best[1]) not in known:
            known.add(piece)
            pieces.append(piece)
        for k in where.pop(best):
            for pair in pairwise(words[k]):
                pairs[pair] -= often[k]
            words[k] = _merged(words[k], best)
            for pair in pairwise(words[k]):
                pairs[pair] += often[k]
                where.setdefault(pair, set()).add(k)
        del pairs[best]
    return pieces


def _merged(word: list[str], pair: tuple[str, str]) -> list[str]:
    merged: list[str] = []
    for piece in word:
        if merged and (merged[-1], piece) == pair:
            merged[-1] += piece
        else:
            merged.append(piece)
    return merged


class Tokenizer:
    """Texts to indices into a vocabulary."""

    def __init__(self, vocabulary: Sequence[str], *, kind: str):
        self.entries = list(vocabulary)
        self.kind = kind                                   # words | bytepairs
        self.number = {entry: k for k, entry in enumerate(self.entries)}
        self._known: dict[str, list[int]] = {}             # cache of words

    def __call__(self, text: str) -> list[int]:
        """Numbers of all words of a text; empty for an empty text."""
        return [number for word in words_of(text) for number in self._word(word)]

    def unknown(self, text: str) -> list[str]:
        """Words of a text that are wholly or partly missing from the vocabulary."""
        return [word for word in words_of(text) if 0 in self._word(word)]

    def text(self, numbers: Sequence[int]) -> str:
        """The text of these numbers: words with spaces between them, none before punctuation that follows a word."""
        entries = [self.entries[number] for number in numbers]
        said = " ".join(entries) if self.kind == "words" else "".join(entries).strip()
        return _BEFORE.sub(r"\1", said)

    def _word(self, word: str) -> list[int]:
        if word not in self._known:
            pieces = [word] if self.kind == "words" else self._pieces(word)
            self._known[word] = [self.number.get(piece, 0) for piece in pieces]
        return self._known[word]

    def _pieces(self, word: str) -> list[str]:
        pieces = _letters(word)
        while True:  # merge in the order of training
            ranked = [(self.number[a + b], (a, b)) for a, b in pairwise(pieces) if a + b in self.number]
            if not ranked:
                return pieces
            pieces = _merged(pieces, min(ranked)[1])
