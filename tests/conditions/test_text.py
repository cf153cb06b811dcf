"""Text encoders: padding, empty and dropped texts, long ones, checkpoints, and frozen encoders of other packages."""

import json
from copy import deepcopy

import pytest
import torch

from aigc.conditions import build_encoder, condition_for
from aigc.conditions.frozen import load_frozen
from aigc.conditions.text import read_once
from aigc.conditions.vocabulary import build_vocabulary
from aigc.errors import UserError

TEXTS = ["a red circle", "a large blue square left of a small red star", "", "a star"]
OPTIONS = {"encoder": "own", "name": None, "words": "words", "size": 64, "tokens": 16, "width": 16, "layers": 2,
           "heads": 2}


def encoder_of(attended=True, **options):
    torch.manual_seed(0)
    vocabulary = build_vocabulary(TEXTS, kind=options.get("words", "words"))
    built = build_encoder("text", classes=None, width=8, vocabulary=vocabulary, text={**OPTIONS, **options},
                          attended=attended)
    return built.eval()


@pytest.fixture(scope="module")
def t5(tmp_path_factory):
    """A tiny T5 with random weights and a tokenizer of single words, saved as `transformers` does."""
    transformers = pytest.importorskip("transformers", reason="the extra t5 is not installed")
    folder = tmp_path_factory.mktemp("t5")
    torch.manual_seed(3)
    sizes = {"vocab_size": 64, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}
    transformers.T5EncoderModel(transformers.T5Config(**sizes)).save_pretrained(folder)
    _word_tokenizer(transformers, "[UNK] <pad> [EOS]").save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A tiny CLIP text tower likewise."""
    transformers = pytest.importorskip("transformers", reason="the extra t5 is not installed")
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(4)
    config = transformers.CLIPTextConfig(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=12, projection_dim=16, eos_token_id=2, pad_token_id=1, bos_token_id=0,
    )
    transformers.CLIPTextModel(config).save_pretrained(folder)
    _word_tokenizer(transformers, "[UNK] <pad> [EOS]").save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def open_clip_folder(tmp_path_factory):
    """A tiny open_clip model with random weights, as a folder."""
    open_clip = pytest.importorskip("open_clip", reason="the extra clip is not installed")
    folder = tmp_path_factory.mktemp("open_clip")
    model = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 16, "layers": 1, "width": 16, "head_width": 8, "patch_size": 8},
        "text_cfg": {"context_length": 20, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    }
    torch.manual_seed(5)
    network = open_clip.CLIP(**model)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": model, "preprocess_cfg": {}}))
    torch.save(network.state_dict(), folder / "open_clip_pytorch_model.bin")
    return str(folder)


def _word_tokenizer(transformers, special):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    unknown, pad, end = special.split()
    words = [unknown, pad, end, *sorted({word for text in TEXTS for word in text.split()})]
    tokenizer = Tokenizer(models.WordLevel({word: k for k, word in enumerate(words)}, unk_token=unknown))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single=f"$A {end}", special_tokens=[(end, 2)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token=unknown, pad_token=pad, eos_token=end
    )


@pytest.fixture(params=["own", "bytepairs", "t5", "clip", "open_clip"])
def encoder(request):
    """An encoder of every kind."""
    if request.param in ("own", "bytepairs"):
        return encoder_of(words="bytepairs" if request.param == "bytepairs" else "words", tokens=64)
    folder = request.getfixturevalue("open_clip_folder" if request.param == "open_clip" else request.param)
    return encoder_of(encoder="open_clip" if request.param == "open_clip" else "transformers", name=folder)


# ---- every encoder ----


def test_a_text_means_the_same_beside_longer_ones_and_padded_further(encoder):
    ids = encoder.tokenize(TEXTS)
    vectors, tokens, mask = encoder.read(ids, n=4)
    assert vectors.shape == (4, 8) and tokens.shape == (4, ids.shape[1] + 1, 16) and mask.shape == tokens.shape[:2]
    for k, text in enumerate(TEXTS):
        alone, own, own_mask = encoder.read(encoder.tokenize([text]), n=1)
        torch.testing.assert_close(alone[0], vectors[k], atol=1e-5, rtol=1e-5)
        assert own_mask.all() and int(mask[k].sum()) == own.shape[1]
        torch.testing.assert_close(own[0], tokens[k, : own.shape[1]], atol=1e-5, rtol=1e-5)
    assert float((vectors[0] - vectors[3]).abs().max()) > 1e-4


def test_empty_dropped_and_missing_texts_are_the_same_null(encoder):
    ids = encoder.tokenize(TEXTS)
    drop = torch.tensor([True, False, False, True])
    vectors, _, mask = encoder.read(ids, n=4, drop=drop)
    null, start, null_mask = encoder.read(None, n=4)
    for k in (0, 2, 3):
        torch.testing.assert_close(vectors[k], null[k], atol=1e-6, rtol=1e-5)
        assert mask[k].tolist() == [True] + [False] * (mask.shape[1] - 1)
    torch.testing.assert_close(vectors[1], encoder(ids, n=4)[1])
    assert null_mask.all() and start.shape == (4, 1, 16)
    assert float((vectors[1] - null[1]).abs().max()) > 1e-4


def test_order_of_words_matters(encoder):
    texts = ["a red star left of a blue square", "a blue square left of a red star"]
    one, other = encoder(encoder.tokenize(texts), n=2)
    assert float((one - other).abs().max()) > 1e-4


def test_what_is_trained_learns_and_only_that_is_stored(encoder):
    vector, tokens, _ = encoder.read(encoder.tokenize(TEXTS), n=4)
    (vector.square().sum() + tokens.square().sum()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in encoder.parameters())
    copy = deepcopy(encoder)
    copy.load_state_dict(encoder.state_dict())
    torch.testing.assert_close(copy(copy.tokenize(TEXTS), n=4), vector)
    if encoder.frozen is not None:
        assert copy.frozen is encoder.frozen  # an average shares it
        assert not any(p.requires_grad for p in encoder.frozen.network.parameters())
        assert sum(value.numel() for value in encoder.state_dict().values()) < 1000


# ---- our own ----


def test_long_texts_are_cut_off_and_said_with_unknown_words():
    encoder = encoder_of(tokens=4)
    assert encoder.tokenize([TEXTS[1]]).shape == (1, 4)
    assert torch.equal(encoder.tokenize([TEXTS[1]]), encoder.tokenize(["a large blue square"]))
    lines = encoder.warnings([TEXTS[1], TEXTS[1], "a green dog", "a red star"])
    assert lines == [
        "1 of the prompts cut off after 4 tokens: 'a large blue square left of a small red ...'",
        "not in the training captions, so meaningless to the model: green, dog",
    ]
    assert encoder.warnings(["a red star"]) == encoder_of().warnings(["“a red, star”!"]) == []  # marks are no words


def test_unknown_words_say_nothing_but_where_they_stand():
    encoder = encoder_of()
    assert torch.equal(encoder.tokenize(["a green circle"]), encoder.tokenize(["a mauve circle"]))
    assert float(encoder.transformer.table.weight[0].abs().max()) == 0


def test_conditions_are_checked():
    encoder = encoder_of()
    given = {"kind": "text", "classes": None, "seeds": range(2), "encoder": encoder}
    assert condition_for(None, **given).shape == (2, 0)
    assert condition_for(["a star", "star"], **given).shape == (2, 2)
    with pytest.raises(UserError, match="1 text for 2 images"):
        condition_for(["a star"], **given)
    for wrong in ("a star", [1, 2]):
        with pytest.raises(UserError, match="give it a text for each image"):
            condition_for(wrong, **given)


# ---- others' ----


def test_frozen_numbers_keep_their_end_mark_when_cut(clip):
    encoder = encoder_of(encoder="transformers", name=clip, tokens=4)
    ids = encoder.tokenize([TEXTS[1]])
    assert ids.shape == (1, 4) and int(ids[0, -1]) == 2
    assert "cut off after 4 tokens" in encoder.warnings([TEXTS[1]])[0]
    assert encoder_of(encoder="transformers", name=clip, tokens=99).tokens == 12  # its own limit


def test_frozen_features_are_the_models_own(t5):
    transformers = pytest.importorskip("transformers")
    encoder = encoder_of(encoder="transformers", name=t5)
    model = transformers.T5EncoderModel.from_pretrained(t5).eval()
    ids = encoder.tokenize([TEXTS[1]])
    with torch.no_grad():
        expected = model(input_ids=ids).last_hidden_state
    torch.testing.assert_close(encoder.frozen(ids), expected)


def test_a_frozen_encoder_runs_once_for_all_steps_of_a_sampler(t5):
    encoder, calls = encoder_of(encoder="transformers", name=t5), []
    hook = encoder.frozen.network.register_forward_hook(lambda *_: calls.append(1))
    ids = encoder.tokenize(TEXTS)
    for _ in range(3):
        encoder.read(ids, n=4)
    hook.remove()
    assert len(calls) <= 1


def test_equal_texts_are_read_once_while_one_sampler_runs():
    encoder = encoder_of()
    ids, calls = encoder.tokenize(TEXTS), []
    encoder.transformer.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        alone = encoder.read(ids, n=4)
        with read_once(torch.nn.Sequential(encoder)):
            for drop in (None, torch.tensor([False, True, True, False])) * 3:
                assert encoder.read(ids.clone(), n=4, drop=drop)[0].shape == alone[0].shape
            assert len(calls) == 1 + 2 and torch.equal(encoder.read(ids, n=4)[1], alone[1])
            with torch.enable_grad():
                assert encoder.read(ids, n=4)[0].requires_grad
        encoder.pool.bias += 1                              # read anew afterwards: weights may have changed
        torch.testing.assert_close(encoder.read(ids, n=4)[0], alone[0] + 1)
    assert len(calls) == 5


def test_other_weights_under_the_same_name_are_noticed(t5, clip):
    encoder = encoder_of(encoder="transformers", name=t5)
    other = encoder_of(encoder="transformers", name=clip)
    with pytest.raises(UserError, match="has different weights from the one this model was trained with"):
        encoder.load_state_dict(other.state_dict())


def test_what_cannot_be_loaded_is_one_sentence(monkeypatch, tmp_path):
    with pytest.raises(UserError, match="did you mean 'transformers'"):
        load_frozen("transformer", "t5")
    with pytest.raises(UserError, match=r"needs model\.text\.name"):
        load_frozen("open_clip", None)
    for package, extra in (("transformers", "t5"), ("open_clip", "clip")):
        monkeypatch.setitem(__import__("sys").modules, package, None)
        with pytest.raises(UserError, match=rf"pip install 'aigc\[{extra}\]'"):
            load_frozen(package, str(tmp_path / extra))


@pytest.mark.parametrize(("package", "module"), [("transformers", "transformers"), ("open_clip", "open_clip")])
def test_an_empty_folder_is_no_encoder(package, module, tmp_path):
    pytest.importorskip(module, reason=f"the extra of {package} is not installed")
    with pytest.raises(UserError, match=r"model\.text\.name=.* cannot be loaded by"):
        load_frozen(package, str(tmp_path))
