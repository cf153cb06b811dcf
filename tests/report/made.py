"""Run folders as training leaves them, without training."""

import json
from pathlib import Path
from typing import Any

from PIL import Image

PROTOCOL = {
    "metric": "fd_classifier", "network": "classifier", "network_sha256": "ab" * 32, "resizer": "none",
    "data": "digits", "data_fingerprint": "0123456789abcdef", "split": "train", "num_samples": 2000,
    "num_samples_final": 2000, "num_reals": 1500, "seed": 0, "floor": 0.1, "kd_subsets": 20, "is_splits": 10,
}


def make_run(
    folder: Path, *, family: str = "GAN", fd: float = 1.0, lines: int = 20, grids: int = 3, rate: float = 1e-3,
    seed: int = 1, overrides: tuple[str, ...] = (), status: str = "finished", **protocol: Any,
) -> Path:
    """A run that logged a loss every 10 steps, and `fd_classifier` in its middle (twice `fd`) and at its end."""
    (folder / ".hydra").mkdir(parents=True)
    (folder / "samples").mkdir()
    text = f"study: made\nseed: {seed}\nmodel:\n  _target_: aigc.{family}\n  rate: {rate}\n  betas: [0.5, 0.9]\n"
    (folder / ".hydra" / "config.yaml").write_text(text)
    (folder / ".hydra" / "overrides.yaml").write_text("".join(f"- {word}\n" for word in (*overrides, f"seed={seed}")))
    choices = {"hydra": {"runtime": {"choices": {"model": family.lower(), "data": "digits"}}}}
    (folder / ".hydra" / "hydra.yaml").write_text(json.dumps(choices))
    history = []
    for k in range(1, lines + 1):
        at = {"step": 10 * k, "images": 640 * k, "seconds": 3.0 * k}
        history.append({**at, "loss": 1 / k, "rate": rate})
        if k in (lines // 2, lines):
            history.append({**at, "val/loss": 2 / k, "fd_classifier": 2 * fd * lines / k / 2, "label_accuracy": 0.9})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in history))
    last = {name: history[-1][name] for name in ("val/loss", "fd_classifier", "label_accuracy")} if history else {}
    summary = {
        "status": status, "reason": None, "study": "made", "seed": seed, "family": family, "parameters": 1234,
        "images": 640 * lines, "seconds": 3.0 * lines, "images_per_second": 213.3, "peak_memory_mb": 100.0,
        "scores": {"last": last, "best": fd, "monitor": "fd_classifier"}, "protocol": {**PROTOCOL, **protocol},
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    for k in range(grids):
        Image.new("RGB", (66, 66), (80 * k, 40, 200)).save(folder / "samples" / f"{k * 640 * lines // 2:09d}.png")
    return folder


def evaluate(run: Path, name: str, fd: float, evaluations: float, options: dict[str, Any] | None = None,
             **target: Any) -> None:
    """A record as `aigc.evaluate` writes it, measured as in training."""
    record = {
        "made": name, "target": {"kind": "checkpoint", "run": str(run), "checkpoint": "best", **target},
        "scores": {"fd_classifier": {"value": fd, "low": fd - 0.1, "high": fd + 0.1, "floor": 0.1}},
        "protocol": {"fd_classifier": {**PROTOCOL, "neighbours": 5}},
        "sampling": {"evaluations": evaluations, "seconds_per_image": evaluations / 100, "options": options or {}},
    }
    (run / "evaluations").mkdir(exist_ok=True)
    (run / "evaluations" / f"{name}.json").write_text(json.dumps(record))
