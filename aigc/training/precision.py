"""Which precision to train in.

On a CPU no feature flag decides it: bf16 is 1.4 times as fast as float32 on a processor with AMX, but 0.75 times as
fast on one with only AVX512-BF16. So `auto` measures there: real training steps of a copy of the model, alternating
bf16 and float32, for about a second, once per processor, torch version, number of threads and kind of model.
"""

import copy
import hashlib
import itertools
import logging
import os
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.plugins import MixedPrecision, Precision
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn

from aigc.errors import UserError, choices
from aigc.files.cache import keep_cached, load_cached
from aigc.wording import counted

OFFERED = {"32-true": "32-true", "32": "32-true", "bf16-mixed": "bf16-mixed", "bf16": "bf16-mixed",
           "16-mixed": "16-mixed", "16": "16-mixed"}       # as typed: Lightning's name
VERSION = 1             # of the measurement: a change makes new cache entries
SECONDS = 0.8           # after which a measurement starts no further round
STEP = 0.3              # most seconds per step: batches are cut to fit, which favours float32
ROUNDS = 6              # most rounds
CALM = 0.7              # share of the time in which this thread must have run: otherwise other work interfered,
                        # and the result is used but not kept
GAIN = 1.03             # factor by which bf16 must be faster: it rounds, so float32 wins a draw
LARGE = 20_000_000      # parameters from which layers are measured instead of whole steps
LAYERS, WORK = 4, 2e8   # ... number of kinds, and multiplications in each
HOPELESS = 2.0          # bf16 that is so much slower on a few layers is emulated: steps are not measured

clock = time.thread_time        # time of this thread alone, without other users of the processor
log = logging.getLogger(__name__)


def choose_precision(wanted: str | int, device: str) -> str:
    """Lightning's name of the precision `wanted`; `auto` is the fast one of a GPU, and 32-true on a CPU.

    Args:
        wanted: `auto`, `32-true`, `bf16-mixed` or, on a GPU, `16-mixed`; also without the ending.
        device: `cpu` or `cuda`.

    Raises:
        UserError: any other: images, averages and scores are float32, so weights of 16 or 64 bits do not fit.
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
    return "32-true"


def settle_precision(
    wanted: str | int, device: str, model: L.LightningModule, data: Any, *, before: str | None = None,
    first: bool = True,
) -> tuple[str, dict[str, Any] | None]:
    """The precision of a run: `choose_precision`, or with `auto` on a CPU the faster one.

    Args:
        wanted: as in the configuration.
        device: `cpu` or `cuda`.
        model: a family with its initial weights; neither it nor the random state changes.
        data: its data module, set up.
        before: the precision of a resumed run: `auto` keeps it, whatever is faster here.
        first: whether this is rank 0; the others adopt its choice (`OnePrecision`).

    Returns:
        Lightning's name of the precision, and the measurement as plain values, or None.
    """
    chosen = choose_precision(wanted, device)
    if wanted != "auto" or not first:
        return chosen, None
    measured = measure_precision(model, data) if device == "cpu" else None
    chosen = measured["faster"] if measured is not None else chosen
    if before in OFFERED and before != chosen and (before != "16-mixed" or device == "cuda"):
        log.info("precision: %s, as this run began; a new run would choose %s here (trainer.precision=%s)",
                 before, chosen, chosen)
        return before, measured
    if measured is not None:
        log.info("precision: %s (%s takes %.3g ms in bf16 and %.3g ms in float32%s)", chosen, measured["what"],
                 measured["bf16_ms"], measured["float32_ms"], ", measured earlier" if measured["from_cache"] else "")
    return chosen, measured


class OnePrecision(L.Callback):
    """Makes all ranks use the precision that rank 0 chose: nodes may differ in which is faster."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Adopts it before anything is computed."""
        chosen = trainer.strategy.broadcast(trainer.precision, src=0)
        if chosen != trainer.precision:
            trainer.strategy.precision_plugin = _plugin(chosen)


def _plugin(name: str) -> Precision:
    return MixedPrecision("bf16-mixed", "cpu") if name == "bf16-mixed" else Precision()


# ---- the measurement ----


def measure_precision(model: L.LightningModule, data: Any) -> dict[str, Any]:
    """Milliseconds of bf16 and float32 for this model here, cached or measured now, and which is `faster`."""
    layers = Counter(type(m).__name__ for m in model.modules() if _weight(m) is not None)
    threads = torch.get_num_threads()
    facts = {"processor": processor(), "torch": str(torch.__version__), "threads": threads,
             "layers": dict(sorted(layers.items()))}
    key = hashlib.sha256(repr((VERSION, facts, _signature(model), data.batch_size, data.size)).encode()).hexdigest()
    kept = load_cached(f"precision-{key[:20]}")
    if kept is not None:
        return {**kept, "from_cache": True}
    started = time.perf_counter()
    with isolate_rng(include_cuda=False):
        found = _measure(model, data)
        if not found["calm"] and threads > 1:  # waiting threads would measure each other
            torch.set_num_threads(1)
            try:
                found = {**_measure(model, data), "calm": False}
            finally:
                torch.set_num_threads(threads)
    seconds = round(time.perf_counter() - started, 2)
    faster = "bf16-mixed" if found["bf16_ms"] * GAIN < found["float32_ms"] else "32-true"
    measured = {**found, "faster": faster, **facts, "seconds": seconds}
    if measured["calm"]:
        keep_cached(f"precision-{key[:20]}", measured)
    return {**measured, "from_cache": False}


def _measure(model: L.LightningModule, data: Any) -> dict[str, Any]:
    """Both times, by the method that this model allows."""
    found = _layers(model, WORK / 20)
    if found["bf16_ms"] < HOPELESS * found["float32_ms"]:
        small = sum(p.numel() for p in model.parameters()) <= LARGE
        try:
            found = _steps(model, data) if small else _layers(model, WORK)
        except Exception as error:  # a user's family may fail to be copied: its training will report it
            log.debug("no steps for choosing the precision (%s)", error)
    return found


def processor() -> str:
    """This CPU's model and its bf16 features, as far as oneDNN may use them."""
    name, info = "", Path("/proc/cpuinfo")
    if info.is_file():
        lines = dict(line.split(":", 1) for line in info.read_text().split("\n\n")[0].splitlines() if ":" in line)
        found = {key.strip(): value.strip() for key, value in lines.items()}
        name = " ".join(found.get(key, "") for key in ("model name", "cpu family", "model", "stepping")).strip()
    able = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    flags = [flag for flag in ("avx2", "avx512_f", "avx512_bf16", "amx_bf16", "bf16", "sve") if able.get(flag)]
    most = os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA")
    return f"{name or able.get('cpu_name', 'CPU')} ({', '.join(flags + [f'at most {most}'] * bool(most))})"


def _weight(module: nn.Module) -> Tensor | None:
    """A module's kernel or matrix; for a parametrized one the original, because reading the other changes it."""
    changed = getattr(module, "parametrizations", {})
    weight = changed["weight"].original if "weight" in changed else getattr(module, "weight", None)
    own = isinstance(weight, Tensor) and weight.ndim in (2, 4) and not isinstance(module, nn.Embedding)
    return weight if own else None


def _signature(model: nn.Module) -> list[Any]:
    """What determines the time of a model's steps: its class and the shapes of its kernels and matrices."""
    shapes = Counter((type(m).__name__, tuple(w.shape), getattr(m, "stride", None)) for m in model.modules()
                     if (w := _weight(m)) is not None)
    return [type(model).__qualname__, sorted(map(repr, shapes.items()))]


class _Rehearsal(L.Callback):
    """Alternates steps in float32 and bf16, with as many images as `STEP` seconds allow, until the time is up."""

    def __init__(self, images: int):
        self.most, self.n, self.growing, self.cold = images, min(2, images), True, True
        self.started, self.taken, self.began = clock(), 0, time.perf_counter()
        self.seconds: dict[str, list[float]] = {"32-true": [], "bf16-mixed": []}
        self.names = itertools.cycle(self.seconds)

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.name = "32-true" if self.growing else next(self.names)
        trainer.strategy.precision_plugin = _plugin(self.name)
        pl_module.progress.batches = 1 + self.taken // 2    # lazy penalties hit both equally
        for key, value in batch.items():
            batch[key] = value[: self.n]
        self.mark = clock()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        now = clock()
        took = now - self.mark
        if self.growing:
            if self.cold:       # the first step of a shape prepares its kernels
                self.growing, self.cold = now - self.started < SECONDS / 2, False
                return
            larger = min(self.most, 4 * self.n, max(self.n, int(self.n * STEP / took)))
            self.growing, self.cold, self.n = larger > self.n and now - self.started < SECONDS / 2, True, larger
            return
        self.seconds[self.name].append(took)
        self.taken += 1
        if self.taken % 2 == 0:
            late = now - self.started > SECONDS and self.taken > 2   # the first pair prepares kernels
            trainer.should_stop = late or self.taken > 2 * ROUNDS or now - self.started > 4 * SECONDS
            self.calm = (now - self.started) / (time.perf_counter() - self.began) > CALM


def steps(model: L.LightningModule, data: Any) -> _Rehearsal:
    """Runs whole training steps of a copy of the model on the first images of its data, and times them."""
    whole = data.prepare(data.train_dataloader().dataset[0], "cpu")
    rehearsal = _Rehearsal(len(whole["index"]))

    def endless() -> Iterator[Any]:
        while True:
            yield dict(whole)

    trainer = L.Trainer(
        accelerator="cpu", devices=1, max_epochs=-1, limit_val_batches=0, num_sanity_val_steps=0, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, callbacks=[rehearsal],
        plugins=[LightningEnvironment()], use_distributed_sampler=False,
    )
    trainer.fit(copy.deepcopy(model), _Stream(endless()))
    return rehearsal


def _steps(model: L.LightningModule, data: Any) -> dict[str, Any]:
    """Times of whole training steps."""
    rehearsal = steps(model, data)
    # the first step of a shape prepares its kernels
    fastest = {name: 1e3 * min(times[1:] or times) for name, times in rehearsal.seconds.items()}
    return {"bf16_ms": fastest["bf16-mixed"], "float32_ms": fastest["32-true"],
            "what": f"a step of {counted(rehearsal.n, 'image')}", "rounds": rehearsal.taken // 2,
            "calm": rehearsal.calm}


class _Stream:
    """Batches in an iterable, as Lightning expects them."""

    def __init__(self, batches: Iterator[Any]):
        self.batches = batches

    def __iter__(self) -> Iterator[Any]:
        return self.batches


def _layers(model: nn.Module, work: float) -> dict[str, Any]:
    """Times of the model's largest kinds of layers, forward and backward, on maps of moderate size."""
    kinds = Counter((tuple(w.shape), getattr(m, "stride", (1, 1)), getattr(m, "groups", 1),
                     isinstance(m, nn.ConvTranspose2d)) for m in model.modules() if (w := _weight(m)) is not None)
    largest = sorted(kinds.items(), key=lambda kind: -kind[1] * torch.Size(kind[0][0]).numel())[:LAYERS]
    total = {"32-true": 0.0, "bf16-mixed": 0.0}
    computed, begun = clock(), time.perf_counter()
    for (shape, stride, groups, transposed), count in largest:
        weight = torch.randn(shape, requires_grad=True)
        side = max(4, int((work / weight.numel() / 4) ** 0.5))
        inputs = (shape[0] if transposed else shape[1] * groups) if len(shape) == 4 else shape[1]
        x = torch.randn((4, inputs, side, side) if len(shape) == 4 else (4 * side * side, inputs), requires_grad=True)
        times: dict[str, list[float]] = {name: [] for name in total}
        for _ in range(4):
            for name, found in times.items():
                started = clock()
                with torch.autocast("cpu", torch.bfloat16, enabled=name == "bf16-mixed"):
                    if len(shape) == 2:
                        y = F.linear(x, weight)
                    else:
                        y = (F.conv_transpose2d if transposed else F.conv2d)(x, weight, stride=stride, groups=groups)
                torch.autograd.grad(y.float().square().mean(), (x, weight))
                found.append(clock() - started)
        for name, found in times.items():
            total[name] += 1e3 * count * min(found[1:])
    return {"bf16_ms": total["bf16-mixed"], "float32_ms": total["32-true"],
            "what": f"its {len(largest)} largest kinds of layers", "rounds": 4,
            "calm": (clock() - computed) / (time.perf_counter() - begun) > CALM}
