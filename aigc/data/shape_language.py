"""Richer captions of rendered shapes: counts, three objects, what is not there, synonyms, several sentences for each.

- Five kinds of captions, all as frequent: one object, two and how they stand, three, several alike, and negations.
- A caption is a set of claims about a picture, which `fulfilment` checks against the objects that are in it: it says
  how many there are, so another object is a mistake, and what it leaves open (any colour but red) may be anything.
- Each kind is said in several sentences, some of which only the split `templates` uses: of words that training has.
- Words are replaced by synonyms now and then. Everything is a function of (seed, split, index), like the pixels.
"""

from itertools import permutations
from typing import Any

import numpy as np
import torch
from torch import Tensor

from aigc.data.scenes import COLOURS, COLUMNS, GAP, MARGIN, RELATIONS, SHAPES, SIZES, Scenes, combinations, uniform
from aigc.noise import mix

KINDS = ("one", "two", "three", "count", "negation")
FORMS = ("not_colour", "not_shape", "none_colour", "none_shape")    # of negation: of one object, or of all
COLUMNS3 = (*COLUMNS, "size3", "colour3", "shape3")                 # of attributes, for up to three objects
NOUN = ("size", "colour", "shape", "not_colour", "not_shape")       # what may be claimed of an object
WHOLE = ("kind", "count", "relation", "none_colour", "none_shape")  # of the picture
CLAIMS = (*WHOLE, *(f"{name}{suffix}" for suffix in ("", "2", "3") for name in NOUN))
ORDERS = tuple(permutations(range(3)))
WORDS = 1                                                # separates a caption's random numbers from its picture's
SAID_OTHERWISE = 0.3                                     # share of words with synonyms that are replaced by one
SYNONYMS = {
    "small": ("little", "tiny"), "large": ("big", "huge"), "circle": ("disc",), "square": ("box",), "cross": ("plus",),
    "purple": ("violet",), "cyan": ("turquoise",), "above": ("over",), "below": ("under",), "object": ("thing",),
}
NUMBERS = ("one", "two", "three")
TEMPLATES = {  # what training says, and what only the split `templates` does
    "one": (("{x}", "a picture of {x}", "there is {x}", "{x} and nothing else"),
            ("a picture of {x} and nothing else", "there is {x} and nothing else")),
    "left of": (("{x} left of {y}", "{y} right of {x}", "a picture of {x} left of {y}", "there is {y} right of {x}"),
                ("a picture of {y} right of {x}", "there is {x} left of {y}", "left of {y} there is {x}")),
    "above": (("{x} {above} {y}", "{y} {below} {x}", "a picture of {x} {above} {y}", "there is {y} {below} {x}"),
              ("a picture of {y} {below} {x}", "there is {x} {above} {y}", "{above} {y} there is {x}")),
    "three": (("{x}, {y} and {z}", "{x} and {y} and {z}", "a picture of {x}, {y} and {z}",
               "there is {x} and {y} and {z}"),
              ("a picture of {x} and {y} and {z}", "there is {x}, {y} and {z}")),
    "count": (("{n} {xs}", "a picture of {n} {xs}", "there are {n} {xs}", "{n} {xs} and nothing else"),
              ("a picture of {n} {xs} and nothing else", "there are {n} {xs} and nothing else")),
    "not_colour": (("a {size} {shape} that is not {other}", "there is a {size} {shape} that is not {other}",
                    "a {size} {shape}, not {other}", "a picture of a {size} {shape}, not {other}"),
                   ("a picture of a {size} {shape} that is not {other}", "there is a {size} {shape}, not {other}")),
    "not_shape": (("a {size} {colour} {object} that is not a {other}", "a {size} {colour} {object}, not a {other}",
                   "there is a {size} {colour} {object} that is not a {other}",
                   "a picture of a {size} {colour} {object}, not a {other}"),
                  ("a picture of a {size} {colour} {object} that is not a {other}",
                   "there is a {size} {colour} {object}, not a {other}")),
    "none_colour": (("{n} {objects}, none is {other}", "there are {n} {objects}, none is {other}",
                     "{n} {objects} and nothing {other}", "a picture of {n} {objects} and nothing {other}"),
                    ("a picture of {n} {objects}, none is {other}", "there are {n} {objects} and nothing {other}")),
    "none_shape": (("{n} {objects} and no {other}", "there are {n} {objects} and no {other}",
                    "{n} {objects}, none is a {other}", "a picture of {n} {objects}, none is a {other}"),
                   ("a picture of {n} {objects} and no {other}", "no {other}, {n} {objects}")),
}
HELD_SENTENCES = "templates"                             # the split of the sentences that training never uses


class RichScenes(Scenes):
    """Scenes of up to three objects, some alike, with captions of all kinds."""

    columns = COLUMNS3
    suffixes = ("", "2", "3")

    def __init__(
        self, seed: int, split: str, *, objects: str = "mixed", size: tuple[int, int] = (32, 32), style: str = "flat"
    ):
        super().__init__(seed, split, objects=objects, size=size, style=style)     # objects: 1, 2, 3 or mixed
        self.new_sentences = split == HELD_SENTENCES

    def attributes(self, index: Tensor) -> Tensor:
        """Attributes of images `index` `(k,)` as int64 `(k, 12)`, columns as in COLUMNS3, -1 where there is none.

        Pairs stand left and right or above and below; the first is the left or the upper one. Three are in three
        quarters of the picture, in reading order.
        """
        i, kind, form = index.numpy(), *self._said(index)
        seen, unseen = combinations(False), combinations(True)
        several = 2 + (self._u(i, 8) < 0.5)                                        # 2 or 3
        count = np.select([kind == 0, kind == 1, kind == 2, kind == 3], [1, 2, 3, several],
                          np.where(form < 2, 1, several))
        if self.objects != "mixed":
            count[:] = int(self.objects)
        first = (self._u(i, 1) * len(seen)).astype(int)
        second = (first + 1 + (self._u(i, 2) * (len(seen) - 1)).astype(int)) % len(seen)
        low, high = np.minimum(first, second), np.maximum(first, second)
        third = (self._u(i, 7) * (len(seen) - 2)).astype(int)
        third += third >= low
        third += third >= high                                                    # none of the first two
        things = np.stack([seen[first], seen[second], seen[third]], axis=1)        # (k, 3, 3)
        if self.held:
            rare = unseen[(self._u(i, 3) * len(unseen)).astype(int)]
            things[np.arange(len(i)), (self._u(i, 4) * count).astype(int)] = rare
            things[kind == KINDS.index("count")] = rare[kind == KINDS.index("count"), None]
        alike = kind == KINDS.index("count")
        things[alike] = things[alike, :1]
        things[np.arange(3) >= count[:, None]] = -1
        relation = np.where(count == 2, (self._u(i, 5) * len(RELATIONS)).astype(int), -1)
        background = (self._u(i, 6) * 4).astype(int)
        table = np.column_stack([count, relation, things[:, 0], things[:, 1], background, things[:, 2]])
        return torch.from_numpy(table.astype(np.int64))

    def claims(self, index: Tensor) -> Tensor:
        """What the captions of images `index` `(k,)` claim: int64 `(k, 20)`, columns as in CLAIMS, -1 for nothing.

        `kind` is an index into KINDS; `none_...` is what no object is.
        """
        kind, form = self._said(index)
        have = dict(zip(COLUMNS3, self.attributes(index).numpy().T, strict=True))
        claimed = {name: np.full(len(index), -1) for name in CLAIMS}
        claimed |= {"kind": kind, "count": have["count"]}
        claimed["relation"] = np.where(kind == KINDS.index("two"), have["relation"], -1)
        negated = kind == KINDS.index("negation")
        for suffix in self.suffixes:
            for name in ("size", "colour", "shape"):
                claimed[name + suffix] = np.where(negated, -1, have[name + suffix])
        u = self._u(index.numpy(), 9)
        for k, name in enumerate(FORMS):
            rows = negated & (form == k)
            what = name.partition("_")[2]
            if name.startswith("not"):
                for own in ("size", {"colour": "shape", "shape": "colour"}[what]):
                    claimed[own] = np.where(rows, have[own], claimed[own])
            taken = np.stack([have[what + suffix] for suffix in self.suffixes], axis=1)
            claimed[name] = np.where(rows, _other(taken, len(COLOURS if what == "colour" else SHAPES), u), -1)
        return torch.from_numpy(np.column_stack([claimed[name] for name in CLAIMS]).astype(np.int64))

    def captions(self, index: Tensor) -> list[str]:
        """The captions of images `index` `(k,)`."""
        key = mix(self.key, WORDS)
        u = np.stack([uniform(key, index.numpy(), slot) for slot in range(16)], axis=1)
        form = self._said(index)[1]
        rows = zip(self.claims(index).tolist(), form.tolist(), u.tolist(), strict=True)
        return [self._sentence(dict(zip(CLAIMS, row, strict=True)), FORMS[f], numbers) for row, f, numbers in rows]

    def _u(self, index: np.ndarray, slot: int) -> np.ndarray:
        return uniform(self.key, index, slot)

    def _said(self, index: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Indices into KINDS and FORMS; the form matters in negations alone."""
        kinds = {"1": (0, 4), "2": (1, 3, 4), "3": (2, 3, 4)}.get(self.objects, range(len(KINDS)))
        forms = {"1": (0, 1), "2": (2, 3), "3": (2, 3)}.get(self.objects, range(len(FORMS)))
        i = index.numpy()
        kind = np.array(kinds)[(self._u(i, 0) * len(kinds)).astype(int)]
        return kind, np.array(forms)[(self._u(i, 18) * len(forms)).astype(int)]

    def _sentence(self, row: dict[str, int], form: str, u: list[float]) -> str:
        """The words for a row of claims, chosen by 16 numbers in [0, 1)."""
        kind = KINDS[row["kind"]]
        name = form if kind == "negation" else RELATIONS[row["relation"]] if kind == "two" else kind
        sentences = TEMPLATES[name][int(self.new_sentences)]
        says = iter(u[2:])

        def word(name: str) -> str:
            chance, others = next(says), SYNONYMS.get(name, ())
            return others[int(chance / SAID_OTHERWISE * len(others))] if others and chance < SAID_OTHERWISE else name

        def noun(suffix: str) -> list[str]:
            parts = (list(SIZES), list(COLOURS), SHAPES)
            return [word(words[row[part + suffix]]) if row[part + suffix] >= 0 else ""
                    for part, words in zip(NOUN, parts, strict=False)]

        nouns = [noun(suffix) for suffix in (("",) if kind in ("one", "count", "negation") else self.suffixes)]
        if kind == "three":
            order = ORDERS[int(u[1] * len(ORDERS))]
            nouns = [nouns[k] for k in order]
        size, colour, shape = nouns[0]
        known: dict[str, Any] = {
            **{letter: f"a {' '.join(parts)}" for letter, parts in zip("xyz", nouns, strict=False)},
            "xs": f"{size} {colour} {_plural(shape)}", "n": NUMBERS[row["count"] - 1], "size": size, "colour": colour,
            "shape": shape, "object": (thing := word("object")), "objects": _plural(thing), "above": word("above"),
            "below": word("below"),
        }
        if kind == "negation":
            known["other"] = word((list(COLOURS) if form.endswith("colour") else SHAPES)[row[form]])
        return sentences[int(u[0] * len(sentences))].format(**known)

    def _places(self, index: Tensor, a: dict[str, Tensor], radii: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Centres (x, y): of one and of two as in `Scenes`, of three anywhere in three quarters of a square."""
        one, two = super()._places(index, a, radii)
        empty = (self._random(index, 31) * 4).long()
        width, height = self.size[1] / min(self.size), self.size[0] / min(self.size)
        three = []
        for k, radius in enumerate(radii):
            quarter = k + (empty <= k)
            free = 0.5 - MARGIN - GAP / 2 - 2.1 * radius
            x, y = (MARGIN + 1.05 * radius + free * self._random(index, 24 + 2 * k + axis) for axis in (0, 1))
            x, y = x + (quarter % 2) * (0.5 + GAP / 2 - MARGIN), y + (quarter // 2) * (0.5 + GAP / 2 - MARGIN)
            three.append((x + (width - 1) / 2, y + (height - 1) / 2))
        full = a["count"] == 3
        placed = [tuple(torch.where(full, cell, other) for cell, other in zip(*pair, strict=True))
                  for pair in zip(three, (one, two), strict=False)]
        return [*placed, three[2]]  # type: ignore[list-item]


def _plural(word: str) -> str:
    return word + ("es" if word.endswith(("s", "x")) else "s")


def _other(taken: np.ndarray, choices: int, u: np.ndarray) -> np.ndarray:
    """One of `choices` that is not among those `taken` `(k, 3)`, by numbers `u` `(k,)` in [0, 1)."""
    free = np.ones((len(taken), choices), bool)
    for column in taken.T:
        rows = np.flatnonzero(column >= 0)
        free[rows, column[rows]] = False
    rank = (u * free.sum(1)).astype(int)
    return (free.cumsum(1) > rank[:, None]).argmax(1)


def fulfilment(found: Tensor, claims: Tensor) -> dict[str, Tensor]:
    """Which claims `(n, 20)` the objects in pictures `(n, 12)` fulfil, both int64, columns as in CLAIMS and COLUMNS3.

    Returns, by name, shares in [0, 1] `(n,)` that are NaN where nothing of the kind is claimed: `count`; `size`,
    `colour` and `shape` of the objects, in the order that fits the claims best where they say none; `relation`;
    `negation`: everything that should not be is not; and `all`, 1 for a picture that fulfils the whole caption.
    """
    have = dict(zip(COLUMNS3, found.unbind(1), strict=True))
    want = dict(zip(CLAIMS, claims.unbind(1), strict=True))
    objects = {name: torch.stack([have[name + s] for s in ("", "2", "3")], dim=1)
               for name in ("size", "colour", "shape")}                                   # (n, 3)
    nouns = {name: torch.stack([want[name + s] for s in ("", "2", "3")], dim=1) for name in NOUN}
    right = {name: torch.stack([_fits(name, objects, nouns[name], order) for order in ORDERS]) for name in NOUN}
    every = torch.stack(list(right.values())).all(0)                                      # (orders, n, 3)
    score = torch.stack([r.sum(2) for r in right.values()]).sum(0) + 100 * every.all(2)   # (orders, n)
    score[1:, want["relation"] >= 0] = -1                                                 # said in their own order
    best = score.argmax(0)
    rows = torch.arange(len(found), device=found.device)
    shares: dict[str, Tensor] = {"count": (have["count"] == want["count"]).float()}
    for name in ("size", "colour", "shape"):
        asked = nouns[name] >= 0
        shares[name] = (right[name][best, rows] & asked).sum(1) / asked.sum(1)            # 0 / 0 is NaN
    nothing = torch.full_like(shares["count"], torch.nan)
    related = want["relation"] >= 0
    shares["relation"] = torch.where(related, (have["relation"] == want["relation"]).float(), nothing)
    kept, negated = torch.ones_like(related), torch.zeros_like(related)
    for what in ("colour", "shape"):
        absent = want[f"none_{what}"]
        kept &= right[f"not_{what}"][best, rows].all(1) & ((objects[what] != absent[:, None]).all(1) | (absent < 0))
        negated |= (absent >= 0) | (nouns[f"not_{what}"] >= 0).any(1)
    shares["negation"] = torch.where(negated, kept.float(), nothing)
    whole = every[best, rows].all(1) & kept & (shares["count"] == 1) & (shares["relation"] != 0)
    return {**shares, "all": whole.float()}


def _fits(name: str, objects: dict[str, Tensor], wanted: Tensor, order: tuple[int, ...]) -> Tensor:
    """Whether the objects, taken in this order, fit one claim `(n, 3)` about each; where there is none, they do."""
    have = objects[name.removeprefix("not_")][:, list(order)]
    return (wanted < 0) | ((have != wanted) if name.startswith("not_") else (have == wanted))


def fulfilled(found: Tensor, claims: Tensor) -> dict[str, float]:
    """Mean shares of `fulfilment`, and `all_<kind>` for each kind of caption."""
    shares = fulfilment(found, claims)
    scores = {name: share.nanmean().item() for name, share in shares.items() if not share.isnan().all()}
    kinds = claims[:, CLAIMS.index("kind")]
    return scores | {f"all_{name}": shares["all"][kinds == k].mean().item()
                     for k, name in enumerate(KINDS) if (kinds == k).any()}
