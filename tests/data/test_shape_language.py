"""Richer captions of shapes: true of their own pictures, false of others, in sentences of which some are held out."""

import hashlib

import pytest
import torch

from aigc.conditions.vocabulary import words_of
from aigc.data.scenes import COLOURS, SHAPES, held_out
from aigc.data.shape_language import CLAIMS, COLUMNS3, FORMS, KINDS, RichScenes, fulfilled, fulfilment
from aigc.data.shapes import Shapes
from aigc.errors import UserError

N = 3000
HAS, SAYS = ({name: k for k, name in enumerate(names)} for names in (COLUMNS3, CLAIMS))
INDEX = torch.arange(N)


def told(split: str, objects: str = "mixed") -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    scenes = RichScenes(0, split, objects=objects)
    return scenes.attributes(INDEX), scenes.claims(INDEX), scenes.captions(INDEX)


def combinations(found: torch.Tensor) -> torch.Tensor:
    """Size, colour and shape of all objects that are there, `(m, 3)`."""
    rows = torch.cat([found[:, [HAS[f"{name}{s}"] for name in ("size", "colour", "shape")]] for s in ("", "2", "3")])
    return rows[rows[:, 0] >= 0]


@pytest.mark.parametrize("split", ["train", "heldout", "templates"])
@pytest.mark.parametrize("objects", ["1", "2", "3", "mixed"])
def test_every_caption_is_true_of_its_own_picture_and_of_few_others(split: str, objects: str) -> None:
    found, claims, _ = told(split, objects)
    own = fulfilled(found, claims)
    assert set(own.values()) == {1.0}
    kinds = {"1": "one negation", "2": "two count negation", "3": "three count negation"}.get(objects, " ".join(KINDS))
    assert {name for name in own if name.startswith("all_")} == {f"all_{kind}" for kind in kinds.split()}
    if objects != "mixed":
        assert (found[:, 0] == int(objects)).all() and (claims[:, SAYS["count"]] == int(objects)).all()
    other = fulfilled(found.roll(1, 0), claims)
    assert all(other[f"all_{kind}"] < 0.14 for kind in KINDS[:4] if f"all_{kind}" in other)   # 1 in 10 held out
    assert 0.1 < other["negation"] < 0.95
    rare = torch.tensor([held_out(*row) for row in combinations(found).tolist()])
    assert bool(rare.any()) == (split == "heldout")


def test_all_kinds_and_forms_are_as_frequent() -> None:
    found, claims, _ = told("train")
    share = claims[:, SAYS["kind"]].bincount(minlength=5) / N
    assert (share - 0.2).abs().max() < 0.03
    negated = claims[claims[:, SAYS["kind"]] == KINDS.index("negation")]
    forms = torch.stack([(negated[:, SAYS[name]] >= 0) for name in FORMS])
    assert (forms.sum(0) == 1).all() and (forms.float().mean(1) - 0.25).abs().max() < 0.06
    alike = found[claims[:, SAYS["kind"]] == KINDS.index("count")]
    assert (alike[:, HAS["count"]] == 3).float().mean().item() == pytest.approx(0.5, abs=0.06)
    assert torch.equal(alike[:, [HAS["colour"], HAS["shape"]]], alike[:, [HAS["colour2"], HAS["shape2"]]])
    assert set(found[found[:, 0] == 2][:, HAS["relation"]].tolist()) == {0, 1}
    assert set(found[found[:, 0] != 2][:, HAS["relation"]].tolist()) == {-1}


DISC = ("disc", "box", "plus")                             # other words for shapes


def test_sentences_of_templates_are_new_and_their_words_are_not() -> None:
    def frames(texts: list[str]) -> set[str]:
        swap = dict.fromkeys((*COLOURS, "violet", "turquoise"), "C") | dict.fromkeys((*SHAPES, *DISC), "S")
        swap |= dict.fromkeys(("small", "little", "tiny", "large", "big", "huge"), "Z")
        return {" ".join(swap.get(word, word) for word in words_of(text)) for text in texts}

    shown, held = told("train")[2], told("templates")[2]
    assert not frames(shown) & frames(held) and len(frames(held)) >= 12
    assert frames(told("test")[2]) | frames(told("heldout")[2]) <= frames(RichScenes(0, "train").captions(
        torch.arange(20_000)))
    assert {word for text in held for word in words_of(text)} <= {word for text in shown for word in words_of(text)}


def row(names: dict[str, int], **values: int) -> torch.Tensor:
    return torch.tensor([[values.get(name, -1) for name in names]])


THREE = {"count": 3, "size": 0, "colour": 1, "shape": 2, "size2": 1, "colour2": 3, "shape2": 0, "size3": 0,
         "colour3": 5, "shape3": 4}
TURNED = {"count": 3, "size": 1, "colour": 3, "shape": 0, "size2": 0, "colour2": 5, "shape2": 4, "size3": 0,
          "colour3": 1, "shape3": 2}


def test_three_objects_are_matched_in_any_order_and_pairs_in_their_own() -> None:
    claims = row(SAYS, kind=2, **THREE)
    assert fulfilled(row(HAS, **TURNED), claims)["all"] == 1
    wrong = fulfilled(row(HAS, **{**THREE, "colour2": 4}), claims)
    assert wrong["all"] == 0 and wrong["colour"] == pytest.approx(2 / 3) and wrong["size"] == wrong["shape"] == 1
    assert fulfilled(row(HAS, **{**THREE, "count": 2, "size3": -1, "colour3": -1, "shape3": -1}), claims)["count"] == 0
    pair = {"count": 2, "relation": 0, "size": 0, "colour": 1, "shape": 2, "size2": 1, "colour2": 3, "shape2": 0}
    said = row(SAYS, kind=1, **pair)
    assert fulfilled(row(HAS, **pair), said)["all"] == 1
    assert fulfilled(row(HAS, **{**pair, "relation": 1}), said)["relation"] == 0
    turned = {**pair, "size": 1, "colour": 3, "shape": 0, "size2": 0, "colour2": 1, "shape2": 2}
    assert fulfilled(row(HAS, **turned), said)["all"] == 0
    assert fulfilled(row(HAS, **turned), row(SAYS, **{**pair, "kind": 3, "relation": -1}))["all"] == 1


def test_what_is_denied_must_not_be_there() -> None:
    circle = {"count": 1, "size": 0, "shape": 0}
    said = row(SAYS, kind=4, not_colour=2, **circle)
    assert fulfilled(row(HAS, colour=3, **circle), said)["all"] == 1
    red = fulfilled(row(HAS, colour=2, **circle), said)
    assert (red["all"], red["negation"], red["shape"]) == (0, 0, 1) and "colour" not in red
    assert fulfilled(row(HAS, colour=3, **{**circle, "shape": 1}), said)["negation"] == 1
    no_square = row(SAYS, kind=4, count=3, none_shape=1)
    assert fulfilled(row(HAS, **THREE), no_square)["all"] == 1
    assert fulfilled(row(HAS, **{**THREE, "shape3": 1}), no_square)["negation"] == 0
    assert fulfilment(row(HAS, **THREE), no_square)["relation"].isnan().all()


def test_three_objects_keep_apart_and_stay_inside() -> None:
    scenes = RichScenes(0, "train", objects="3", size=(40, 60))
    a = dict(zip(COLUMNS3, scenes.attributes(INDEX).unbind(1), strict=True))
    at = scenes.centres(INDEX) * torch.tensor([60.0, 40.0]) / 40                   # in shorter sides
    radii = torch.stack(scenes._radii(INDEX, a), dim=1) * 1.05
    assert (at - radii[..., None] > 0.019).all() and (at + radii[..., None] < torch.tensor([1.481, 0.981])).all()
    for i, j in ((0, 1), (0, 2), (1, 2)):
        gap = (at[:, i] - at[:, j]).abs().amax(1) - radii[:, i] - radii[:, j]
        assert gap.min() > 0.02
    rows = at[..., 1] + 0.001 * at[..., 0]
    assert (rows.diff(dim=1) > -0.25).all()                                        # reading order


def test_the_language_has_not_changed() -> None:
    """Runs and fingerprints hang on it."""
    found, claims, texts = told("train")
    digest = hashlib.sha256(found.numpy().tobytes() + claims.numpy().tobytes() + "|".join(texts).encode()).hexdigest()
    assert digest[:16] == "7bf6380117953d91"
    assert texts[:3] == ["a picture of a large green square above a large blue cross",
                         "a large purple circle and a huge cyan square and a large red plus",
                         "there is a small purple circle below a large orange box"]
    means = RichScenes(0, "train").images(torch.arange(256)).float().mean((0, 2, 3)).tolist()
    assert means == pytest.approx([213.645, 209.937, 203.504], abs=0.02)


def test_a_rich_data_set_has_a_split_of_sentences_and_bad_options_are_one_sentence() -> None:
    data = Shapes(batch_size=4, train=20, validation=4, test=4, heldout=6, language="rich", objects="mixed", size=16)
    data.setup()
    assert {name: data.count(name) for name in ("train", "heldout", "templates")} == {
        "train": 20, "heldout": 6, "templates": 6}
    assert data.texts("templates") == RichScenes(0, "templates").captions(torch.arange(6))
    assert torch.equal(data.asked("test"), RichScenes(0, "test").claims(torch.arange(4)))
    assert data.labels("train").max() < 35
    for options, said in (({"language": "plane"}, "unknown data.language 'plane': did you mean 'plain'"),
                          ({"objects": 3}, "unknown data.objects '3': .*, or 3 with data.language=rich"),
                          ({"language": "rich", "caption_background": True}, "data.caption_background=true goes")):
        with pytest.raises(UserError, match=said):
            Shapes(batch_size=4, **options)
