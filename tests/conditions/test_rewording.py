"""Captions reworded: synonyms, templates, keywords dropped and shuffled; numbers of captions."""

from collections import Counter

import pytest
import torch

from aigc.conditions.rewording import Rewording, caption_numbers
from aigc.errors import UserError

NOTHING = {"synonyms": {}, "replace": 0.0, "templates": [], "template": 0.0, "separator": None, "drop": 0.0,
           "shuffle": False, "first": True}
LIST = "noto emoji of a cat, animal, pet, cute, whiskers"


def reworded(caption: str, n: int = 400, **options) -> list[str]:
    torch.manual_seed(0)
    return Rewording(**{**NOTHING, **options})([caption] * n)


def test_without_options_captions_stay_as_they_are():
    assert set(reworded("A small  red circle")) == {"A small  red circle"}


def test_a_share_of_words_is_replaced_by_any_of_their_synonyms():
    options = {"synonyms": {"small": ["little", "tiny"], "circle": ["disc"]}, "replace": 0.4}
    found = reworded("a Small red circle", **options)
    first = Counter(text.split()[1] for text in found)
    assert set(first) == {"Small", "little", "tiny"} and first["Small"] / 400 == pytest.approx(0.6, abs=0.06)
    assert first["little"] / 400 == pytest.approx(0.2, abs=0.05)
    assert {text.split()[2] for text in found} == {"red"}
    both = sum(text.endswith("disc") and "Small" not in text for text in found) / 400
    assert both == pytest.approx(0.16, abs=0.05)                                 # each word for itself


def test_a_share_of_captions_is_put_into_a_template():
    found = Counter(reworded("a star", templates=["a picture of {}", "{} here"], template=0.5))
    assert set(found) == {"a star", "a picture of a star", "a star here"}
    assert found["a star"] / 400 == pytest.approx(0.5, abs=0.07)


def test_keywords_are_dropped_and_shuffled_behind_the_first():
    found = [text.split(", ") for text in reworded(LIST, separator=", ", drop=0.5, shuffle=True)]
    assert {words[0] for words in found} == {"noto emoji of a cat"}
    sizes = torch.tensor([len(words) - 1.0 for words in found])                  # of four
    assert float(sizes.mean()) == pytest.approx(2.0, abs=0.2)
    assert all(float((sizes == k).float().mean()) == pytest.approx(0.2, abs=0.06) for k in range(5))   # uniform
    assert {tuple(words) for words in found} > {("noto emoji of a cat", "cute", "pet")}
    assert {word for words in found for word in words} == set(LIST.split(", "))
    every = [text.split(", ") for text in reworded(LIST, separator=", ", drop=0.9, first=False)]
    assert min(map(len, every)) == 1 and {word for words in every for word in words} == set(LIST.split(", "))


def test_it_draws_from_the_global_generator_and_leaves_empty_captions_empty():
    options = {"synonyms": {"cat": ["kitten"]}, "replace": 0.5, "separator": ", ", "shuffle": True}
    assert reworded(LIST, **options) == reworded(LIST, **options)
    assert set(reworded(" ", templates=["a picture of {}"], template=1.0)) == {" "}


def test_the_words_that_it_adds():
    options = {"synonyms": {"small": ["little", "quite tiny"]}, "templates": ["see {} !"]}
    assert Rewording(**{**NOTHING, **options}).words() == ["little", "quite tiny", "see   !"]


@pytest.mark.parametrize("template", ["a picture", "{} and {}"])
def test_a_template_without_one_place_is_refused(template):
    with pytest.raises(UserError, match=r"model.captions.templates has .*put \{\} where the words go, once"):
        Rewording(**{**NOTHING, "templates": [template]})


def test_captions_have_the_same_number_whatever_way_they_are_spelled():
    a, b, c, d = caption_numbers(["A red  circle", "a red circle", "a red circle.", "a blue circle"]).tolist()
    assert a == b and len({a, c, d}) == 3
    assert a == 3868813310041309068                                              # checkpoints hold it
