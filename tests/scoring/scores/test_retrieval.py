"""Retrieval by caption in closed forms: pools, ranks, ties, zero-shot accuracy, and the same on several devices."""

import math

import pytest
import torch
import torch.nn.functional as F

from aigc.conditions.rewording import caption_numbers
from aigc.data.scenes import COLOURS, SHAPES
from aigc.data.shapes import Shapes
from aigc.models.family import Family
from aigc.scoring.scores.retrieval import pools, recalls, retrieval, splits_of


class Knows(Family):
    """Sees a caption's vector in every image: that of the batch's caption, with a share of them wrong."""

    def __init__(self, data, wrong=0.0):
        super().__init__()
        self.save_hyperparameters({"prompts": ["a small {}", "a large {}"], "condition": "text"})
        self.data, self.wrong, self.seen = data, wrong, 0

    def score_text(self, images, texts):
        return (self.embed_images(images) * self.embed_texts(texts)).sum(1)

    def embed_texts(self, texts):
        made = [torch.randn(64, generator=torch.Generator().manual_seed(number % 2**40))
                for text in texts for number in caption_numbers([text]).tolist()]
        return F.normalize(torch.stack(made), dim=1)

    def embed_images(self, images):
        every = self.data.to_float({"image": self.data.images(self.split)})["image"]
        texts = self.data.texts(self.split)
        rows = (every.flatten(1)[None] - images.flatten(1)[:, None]).abs().sum(2).argmin(1).tolist()
        return self.embed_texts([texts[row] for row in rows])

    def embed_classes(self, names):
        vectors = [self.embed_texts([prompt.replace("{}", name) for prompt in self.hparams.prompts]) for name in names]
        return F.normalize(torch.stack(vectors).mean(1), dim=1)


@pytest.fixture(scope="module")
def data():
    made = Shapes(batch_size=8, train=8, validation=80, test=8, heldout=20, size=16)
    made.setup()
    return made


def test_ranks_count_what_fits_as_well_as_found_before():
    fit = torch.tensor([[0.9, 0.1, 0.2], [0.8, 0.5, 0.1], [0.3, 0.3, 0.3]])
    found = recalls(fit)
    assert found["image_to_text_r1"] == pytest.approx(1 / 3)              # the third tells nothing apart
    assert found["text_to_image_r1"] == pytest.approx(1.0)
    assert found["image_to_text_r5"] == found["text_to_image_r5"] == 1.0  # three of three
    assert set(recalls(torch.ones(7, 7)).values()) == {0.0}
    hundred = recalls(torch.rand(2000, 2000, generator=torch.Generator().manual_seed(0)))
    assert hundred["image_to_text_r5"] == pytest.approx(5 / 2000, abs=4 * math.sqrt(5) / 2000)


def test_a_pool_has_each_caption_once_and_is_full():
    captions = torch.tensor([5, 5, 6, 7, 6, 5, 8, 9, 7])
    found = [rows.tolist() for rows in pools(captions, size=3)]
    assert found == [[0, 2, 3], [1, 4, 6], [5, 7, 8]]
    assert len(pools(captions[:-1], size=3)) == 2                         # the last is not full
    assert [rows.tolist() for rows in pools(captions)] == [[0, 2, 3, 6, 7]]
    for rows in pools(torch.arange(1000) % 300, size=100):
        assert len((torch.arange(1000) % 300)[rows].unique()) == 100


def test_who_knows_the_captions_finds_all_of_them_in_smaller_pools_where_there_are_fewer(data):
    family = Knows(data)
    family.split = "validation"
    scores, facts = retrieval(family, data, "validation", batch_size=30)
    different = len(set(data.texts("validation")))
    assert 40 < different < 60 and facts["captions"] == different and facts["num_samples"] == 80
    assert facts["pools"] == 1 and facts["split"] == "validation" and facts["prompts"] == family.hparams.prompts
    assert {name: value for name, value in scores.items() if "retrieval" in name} == {
        f"retrieval/validation/{way}_r{k}": 1.0 for way in ("image_to_text", "text_to_image") for k in (1, 5)}
    assert scores["zero_shot/validation/accuracy"] > 0.95                  # half of a class's vector is its caption's
    assert len(COLOURS) * len(SHAPES) == data.classes == 35


def test_held_out_combinations_are_looked_at_where_there_are_some(data):
    assert splits_of(data, ("validation", "test")) == ["validation", "test", "heldout"]
    family = Knows(data)
    family.split = "heldout"
    scores, facts = retrieval(family, data, "heldout", batch_size=7, most=15)
    assert scores["retrieval/heldout/text_to_image_r1"] == 1.0 and facts["num_samples"] == 15
    assert facts["captions"] <= 10                                         # combinations of a size, colour and shape
