"""Frozen text encoders from other packages, by name or local path: neither trained nor stored in checkpoints."""

import hashlib
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from aigc.errors import UserError, choices

EXTRAS = {"transformers": "t5", "open_clip": "clip"}       # the extra of this package that installs each encoder
CLASSES = {  # text towers of transformers by model type; AutoModel loads others
    "t5": "T5EncoderModel", "mt5": "MT5EncoderModel", "umt5": "UMT5EncoderModel",
    "clip": "CLIPTextModel", "clip_text_model": "CLIPTextModel",
}
LONGEST = 2048                                             # tokens of a text that are counted before truncation


class FrozenText:
    """A network that turns token numbers into vectors, with its tokenizer; every copy is the same object."""

    def __init__(
        self,
        network: nn.Module,
        numbers: Callable[[str], list[int]],    # token numbers of a text, including its end mark
        *,
        features: Callable[[Tensor, Tensor], Tensor],  # ids (n, L) and mask (n, L) to (n, L, width)
        width: int,                             # of a token's vector
        tokens: int,                            # longest text
    ):
        self.network = network.eval().requires_grad_(False)
        self.numbers = numbers
        self.width = width
        self.tokens = tokens
        self._features = features
        self._last: tuple[Tensor, Tensor] | None = None
        digest = hashlib.sha256()
        for name, value in sorted(network.state_dict().items()):
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        self.fingerprint = digest.digest()      # 32 bytes that identify the weights

    def __deepcopy__(self, memo: dict[int, Any]) -> "FrozenText":
        return self

    @torch.no_grad()
    def __call__(self, ids: Tensor) -> Tensor:
        """Vectors `(n, L, width)`, float32, of token numbers `(n, L)`, padded with -1.

        The last result is cached, because samplers repeat a request at every step.
        """
        if self._last is None or not (
            self._last[0].shape == ids.shape and self._last[0].device == ids.device and torch.equal(self._last[0], ids)
        ):
            self.network.to(ids.device)
            mask = ids >= 0
            rows = mask.any(1)                  # texts without tokens need no network
            vectors = torch.zeros(*ids.shape, self.width, device=ids.device)
            if rows.any():
                with torch.autocast(ids.device.type, enabled=False):
                    vectors[rows] = self._features(ids[rows], mask[rows]).float()
            self._last = (ids.clone(), vectors)
        return self._last[1]


@lru_cache(maxsize=2)
def load_frozen(kind: str, name: str | None) -> FrozenText:
    """The encoder `name` (or local path) of the package `kind`: transformers or open_clip.

    Raises:
        UserError: the package is not installed, or finds no such encoder.
    """
    if kind not in EXTRAS:
        raise UserError(f"There is no model.text.encoder '{kind}': {choices(kind, ('own', *EXTRAS))}")
    if not name:
        raise UserError(f"model.text.encoder={kind} needs model.text.name=<name or local path of the encoder>")
    try:
        return {"transformers": _transformers, "open_clip": _open_clip}[kind](name)
    except ImportError as error:
        sentence = f"model.text.encoder={kind} needs a package that is not installed ({error.name or error}): "
        raise UserError(f"{sentence}pip install 'aigc[{EXTRAS[kind]}]'") from error
    except UserError:
        raise
    except Exception as error:  # both packages pass on any error of download, parser or network
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(". ")
        raise UserError(
            f"model.text.name={name} cannot be loaded by {kind} ({reason[:200]}): check the name, the path and the "
            "network"
        ) from error


def _transformers(name: str) -> FrozenText:
    import transformers

    config = transformers.AutoConfig.from_pretrained(name)
    tokenizer = transformers.AutoTokenizer.from_pretrained(name)
    network = getattr(transformers, CLASSES.get(config.model_type, "AutoModel")).from_pretrained(name).float()

    def features(ids: Tensor, mask: Tensor) -> Tensor:
        return network(input_ids=ids.clamp(min=0), attention_mask=mask.long()).last_hidden_state

    def numbers(text: str) -> list[int]:
        return tokenizer(text, verbose=False).input_ids

    places = getattr(network.config, "max_position_embeddings", None)  # T5 has relative positions: any length
    return FrozenText(network, numbers, features=features, width=network.config.hidden_size, tokens=places or 2**20)


def _open_clip(name: str) -> FrozenText:
    """Loads `ViT-B-32/laion2b_s34b_b79k`, `hf-hub:<repository>`, `local-dir:<folder>` or a plain folder."""
    from pathlib import Path

    import open_clip

    local = Path(name).expanduser()
    architecture, pretrained = (f"local-dir:{local}", None) if local.is_dir() else (name, None)
    if pretrained is None and ":" not in architecture:
        architecture, _, pretrained = name.partition("/")
        if not pretrained:
            raise UserError(f"model.text.name={name} names no weights: give <architecture>/<weights> or a folder")
    whole = open_clip.create_model(architecture, pretrained=pretrained)
    tokenizer = open_clip.get_tokenizer(architecture)
    tower = whole.text if hasattr(whole, "text") else whole
    if not hasattr(tower, "ln_final"):
        raise UserError(f"model.text.name={name} holds another package's text tower: use its own encoder")
    for part in ("visual", "logit_scale"):
        if hasattr(whole, part):
            setattr(whole, part, None)          # the image side is not needed
    length, width = whole.context_length, tower.ln_final.normalized_shape[0]
    end = getattr(tokenizer, "eot_token_id", None)

    def numbers(text: str) -> list[int]:
        if end is None:
            return tokenizer(text).squeeze(0).tolist()
        row = tokenizer(text, context_length=LONGEST).squeeze(0).tolist()
        return row[: row.index(end) + 1]

    def features(ids: Tensor, mask: Tensor) -> Tensor:
        caught: list[Tensor] = []
        hook = tower.ln_final.register_forward_hook(lambda module, inputs, output: caught.append(output))
        try:
            whole.encode_text(nn.functional.pad(ids.clamp(min=0), (0, length - ids.shape[1])))
        finally:
            hook.remove()
        return caught[0][:, : ids.shape[1]]

    return FrozenText(whole, numbers, features=features, width=width, tokens=length)


def shortened(numbers: Sequence[int], tokens: int) -> list[int]:
    """The first `tokens` numbers of a text, ending in its end mark."""
    return list(numbers) if len(numbers) <= tokens else [*numbers[: tokens - 1], numbers[-1]]
