"""CLIP score over a tiny CLIP of random weights in a local folder."""

import json

import pytest
import torch

from aigc.errors import UserError
from aigc.scoring.scores.clip_score import CLIPScore

transformers = pytest.importorskip("transformers")
TEXTS = ["a red circle", "two large blue squares on dots", "a red circle", "circle"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Random weights, and a vocabulary of bytes."""
    folder = tmp_path_factory.mktemp("clip")
    letters = [chr(k) for k in range(33, 127)]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: k for k, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = transformers.CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=24)
    size = {"shortest_edge": 16}
    pictures = transformers.CLIPImageProcessor(size=size, crop_size={"height": 16, "width": 16})
    transformers.CLIPProcessor(pictures, tokenizer).save_pretrained(folder)
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**shape, "vocab_size": len(words), "max_position_embeddings": 24, "eos_token_id": len(words) - 1,
            "bos_token_id": len(words) - 2}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = transformers.CLIPConfig(text_config=text, vision_config={**shape, "image_size": 16, "patch_size": 8},
                                         projection_dim=8)
        transformers.CLIPModel(config).save_pretrained(folder)
    return folder


@torch.no_grad()
def test_scores_are_cosines_of_the_two_projections(folder):
    """By hand: torchmetrics 1.9's own fails with transformers 5, whose features come in a wrapper."""
    images = torch.randint(0, 256, (4, 3, 20, 16), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    ours = CLIPScore(str(folder))
    found = ours(images, TEXTS)
    model = transformers.CLIPModel.from_pretrained(folder).eval()
    processor = transformers.CLIPProcessor.from_pretrained(folder)
    for image, text, score in zip(images, TEXTS, found.tolist(), strict=True):      # one at a time: without padding
        given = processor(text=[text], images=[image], return_tensors="pt", truncation=True)
        seen = model.visual_projection(model.vision_model(given["pixel_values"]).pooler_output)
        read = model.text_projection(model.text_model(given["input_ids"]).pooler_output)
        assert score == pytest.approx(100 * max(torch.cosine_similarity(seen, read).item(), 0), abs=1e-3)
    assert found.max() > 1 and found.std() > 0.1
    assert torch.equal(ours(images[:1, :1], TEXTS[:1]), ours(images[:1, :1].expand(-1, 3, -1, -1), TEXTS[:1]))
    assert ours.resizer.startswith("16 x 16") and len(ours.sha256) == 64


def test_a_clip_that_is_not_there_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match=r"clip=.*cannot be loaded.*that transformers reads"):
        CLIPScore(str(tmp_path / "nothing"))
