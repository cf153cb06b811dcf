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
    option: str = "model.captions"                         # its name in error messages

    def __post_init__(self) -> None:
        check_templates(self.templates, f"{self.option}.templates")

    def __call__(self, captions: Sequence[str], generator: torch.Generator | None = None) -> list[str]:
        """Each caption said anew, by this generator or torch's global one; an empty one stays empty."""
        return [self._said(caption, generator) if caption.strip() else caption for caption in captions]

    def words(self) -> list[str]:
        """Texts that hold all words that captions may get in addition to their own."""
        return [*(word for others in self.synonyms.values() for word in others),
                *(template.replace(PLACE, " ") for template in self.templates)]

    def _said(self, caption: str, draw: torch.Generator | None) -> str:
        if self.separator is not None and (self.drop or self.shuffle):
            caption = self.separator.join(self._listed(caption.split(self.separator), draw))
        if self.synonyms and self.replace:
            caption = _WORD.sub(lambda found: self._replaced(found[0], draw), caption)
        if self.templates and self.template and _uniform(draw) < self.template:
            caption = _one_of(self.templates, draw).replace(PLACE, caption)
        return caption

    def _listed(self, keywords: list[str], draw: torch.Generator | None) -> list[str]:
        front, rest = (keywords[:1], keywords[1:]) if self.first else ([], keywords)
        share = 2 * self.drop * _uniform(draw) if self.drop else 0.0
        kept = [word for word in rest if not share or _uniform(draw) >= share]
        if not kept and not front:
            kept = [_one_of(rest, draw)]
        if self.shuffle and len(kept) > 1:
            kept = [kept[k] for k in torch.randperm(len(kept), generator=draw).tolist()]
        return [*front, *kept]

    def _replaced(self, word: str, draw: torch.Generator | None) -> str:
        others = self.synonyms.get(word.lower())
        return _one_of(others, draw) if others and _uniform(draw) < self.replace else word


def _uniform(draw: torch.Generator | None) -> float:
    return float(torch.rand((), generator=draw))


def _one_of(words: Sequence[str], draw: torch.Generator | None) -> str:
    return words[int(torch.randint(len(words), (), generator=draw))]


def check_templates(templates: Iterable[str], option: str) -> None:
    """Refuses templates without a place for what they are about.

    Raises:
        UserError: names the first one.
    """
    for template in templates:
        if template.count(PLACE) != 1:
            raise UserError(f"{option} has '{template}': put {PLACE} where the words go, once")


def caption_numbers(captions: Iterable[str]) -> Tensor:
    """A number for each caption, `(n,)` int64, the same for the same words and everywhere."""
    return torch.tensor([_number(caption) for caption in captions], dtype=torch.int64)


def _number(caption: str) -> int:
    digest = hashlib.blake2b(" ".join(words_of(caption)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)
