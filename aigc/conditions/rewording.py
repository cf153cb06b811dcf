"""Captions said otherwise, and told apart whatever way they are spelled: for families that match texts to images."""

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from aigc.conditions.vocabulary import words_of
from aigc.errors import UserError

PLACE = "{}"                                               # of the caption in a template
_WORD = re.compile(r"\w+")


@dataclass(frozen=True, kw_only=True)
class Rewording:
    """Augments captions: the same words seldom come twice, so what they have in common is learned.

    Keywords are dropped and shuffled first, then words are replaced, then the whole is put into a template.

    Raises:
        UserError: a template has no place for the caption.
    """

    synonyms: Mapping[str, Sequence[str]]                  # what may stand in place of a word
    replace: float                                         # share of these words that are replaced
    templates: Sequence[str]                               # with {} in place of the caption
    template: float                                        # share of captions that are put into one
    separator: str | None                                  # between keywords; None: captions are no lists of them
    drop: float                                            # share of keywords that are left out; one always stays.
                                                           # Each caption's is its own, from 0 to twice it: a word or
                                                           # two alone, and nearly all, are read as well
    shuffle: bool                                          # keywords
    first: bool                                            # the first one stays in front: what the others describe

    def __post_init__(self) -> None:
        check_templates(self.templates, "captions.templates")

    def __call__(self, captions: Sequence[str]) -> list[str]:
        """Each caption said anew, by torch's global generator; an empty one stays empty."""
        return [self._said(caption) if caption.strip() else caption for caption in captions]

    def words(self) -> list[str]:
        """Texts that hold all words that captions may get in addition to their own."""
        return [*(word for others in self.synonyms.values() for word in others),
                *(template.replace(PLACE, " ") for template in self.templates)]

    def _said(self, caption: str) -> str:
        if self.separator is not None and (self.drop or self.shuffle):
            caption = self.separator.join(self._listed(caption.split(self.separator)))
        if self.synonyms and self.replace:
            caption = _WORD.sub(lambda found: self._replaced(found[0]), caption)
        if self.templates and self.template and _uniform() < self.template:
            caption = _one_of(self.templates).replace(PLACE, caption)
        return caption

    def _listed(self, keywords: list[str]) -> list[str]:
        front, rest = (keywords[:1], keywords[1:]) if self.first else ([], keywords)
        share = 2 * self.drop * _uniform() if self.drop else 0.0
        kept = [word for word in rest if not share or _uniform() >= share]
        if not kept and not front:
            kept = [_one_of(rest)]
        if self.shuffle and len(kept) > 1:
            kept = [kept[k] for k in torch.randperm(len(kept)).tolist()]
        return [*front, *kept]

    def _replaced(self, word: str) -> str:
        others = self.synonyms.get(word.lower())
        return _one_of(others) if others and _uniform() < self.replace else word


def _uniform() -> float:
    return float(torch.rand(()))


def _one_of(words: Sequence[str]) -> str:
    return words[int(torch.randint(len(words), ()))]


def check_templates(templates: Iterable[str], option: str) -> None:
    """Refuses templates without a place for what they are about.

    Raises:
        UserError: names the first one.
    """
    for template in templates:
        if template.count(PLACE) != 1:
            raise UserError(f"model.{option} has '{template}': put {PLACE} where the words go, once")


def caption_numbers(captions: Iterable[str]) -> Tensor:
    """A number for each caption, `(n,)` int64, the same for the same words and everywhere."""
    return torch.tensor([_number(caption) for caption in captions], dtype=torch.int64)


def _number(caption: str) -> int:
    digest = hashlib.blake2b(" ".join(words_of(caption)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)
