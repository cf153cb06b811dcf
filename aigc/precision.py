"""Which precision to train in."""

import torch

from aigc.errors import UserError, choices

OFFERED = {"32-true": "32-true", "32": "32-true", "bf16-mixed": "bf16-mixed", "bf16": "bf16-mixed",
           "16-mixed": "16-mixed", "16": "16-mixed"}       # as written, and what Lightning calls it


def choose_precision(wanted: str | int, device: str) -> str:
    """`auto` becomes bf16-mixed where the processor really computes in it, else 16-mixed on a GPU and 32 on a CPU.

    Args:
        wanted: `auto`, `32-true`, `bf16-mixed` or, on a GPU, `16-mixed`; also without the ending.
        device: `cpu` or `cuda`.

    Raises:
        UserError: any other: images, averages and scores are float32 here, so weights of 16 or 64 bits do not fit.
    """
    if wanted != "auto":
        offered = [name for name in ("auto", *OFFERED.values()) if device == "cuda" or name != "16-mixed"]
        if str(wanted) not in OFFERED or OFFERED[str(wanted)] not in offered:
            raise UserError(
                f"trainer.precision={wanted} is not offered on a {'GPU' if device == 'cuda' else 'CPU'}, weights stay "
                f"in float32: {choices(wanted, dict.fromkeys(offered))}"
            )
        return OFFERED[str(wanted)]
    if device == "cuda":
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "16-mixed"
    return "bf16-mixed" if cpu_gains_by_bf16() else "32-true"


def cpu_gains_by_bf16() -> bool:
    """Whether this CPU multiplies bf16 natively (AVX512-BF16 or AMX): 1.6-1.9 times float32 on our convolutions."""
    if hasattr(torch.cpu, "get_capabilities"):
        able = torch.cpu.get_capabilities()
        return bool(able.get("avx512_bf16") or able.get("amx_bf16"))
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
