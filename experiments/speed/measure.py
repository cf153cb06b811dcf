"""How fast aigc is: every figure is a ratio of two things that alternate in one process, in short blocks.

    python experiments/speed/measure.py [--quick] [--root <folder with MNIST/>] [--only step,precision,loader,...]

A round runs every alternative once; a ratio is taken within each round, and its median over the rounds is reported
with the middle half. What else the machine does meanwhile then falls on all alternatives alike. Without `--root` the
images are scikit-learn's embedded digits at 28 px. A full run takes about eight minutes on two cores and writes
results.json and the tables of README.md; `--quick` takes one and writes nothing.
"""

import argparse
import contextlib
import copy
import io
import itertools
import json
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest import mock

import lightning as L
import torch
import torch.nn.functional as F
import torchmetrics
from bare import ALIKE, DEVICE
from bare import LOOPS as MAKING
from bare_autoencoder import LOOPS as RECONSTRUCTING
from bare_translation import LOOPS as TRANSLATING
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.inception import InceptionScore
from torchmetrics.image.kid import KernelInceptionDistance

from aigc.config.schema import CONFIG_DIR, register_schemas
from aigc.config.targets import instantiate
from aigc.data.datamodule import ImageData
from aigc.data.folder import ImageFolder
from aigc.data.preparing import prepare_data
from aigc.data.split import Split
from aigc.models.family import Family
from aigc.models.vae import VAE
from aigc.noise import SeededNoise, mix
from aigc.runs.machine import environment, keep_freed_memory
from aigc.scoring.networks.classifier import Classifier
from aigc.scoring.networks.features import FeatureNetwork
from aigc.scoring.networks.inception import InceptionV3
from aigc.scoring.suite import Suite
from aigc.training import precision
from aigc.training.compatibility import check_compatible
from aigc.training.fit import vocabulary_of
from aigc.training.precision import settle_precision
from aigc.training.trainer import build_trainer, quiet

HERE = Path(__file__).resolve().parent
START, END = "<!-- tables: written by measure.py -->", "<!-- end of tables -->"
PRECISION = "bf16-mixed"        # of the steps that are compared with bare loops
FAMILIES = ("gan", "biggan", "stylegan2", "projected_gan", "vae", "diffusion", "dit", "latent_diffusion",
            "few_step", "imagen_sr", "prior", "clip", "dalle")
STAGES = {"prior": ("tokenizer", "vqvae", "vqgan.VQGAN"), "dalle": ("tokenizer", "vqvae", "vqgan.VQGAN"),
          "latent_diffusion": ("first_stage", "autoencoder", "autoencoder.Autoencoder")}   # option, recipe, class
TRANSLATORS = ("cyclegan", "cut")
AUTOENCODERS = ("vqvae", "vqgan", "autoencoder")
LOOPS = {**MAKING, **TRANSLATING, **RECONSTRUCTING}
BLOCKS = ((40, 0.08), (16, 0.25), (8, float("inf")))    # steps of a block where one takes less than so many seconds:
SEED = 1                                                # every 20 steps a line is logged, every 8 or 16 R1 comes

Row = dict[str, Any]
Times = dict[str, list[float]]


# ---- measuring ----


def clock() -> float:
    """Seconds, once the device has nothing left to do."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def interleave(alternatives: dict[str, Callable[[], Any]], rounds: int, *, warm: int = 1) -> Times:
    """Seconds of every alternative in every round; the first `warm` rounds are not counted."""
    seconds: Times = {name: [] for name in alternatives}
    for _ in range(warm + rounds):
        for name, work in alternatives.items():
            started = clock()
            work()
            seconds[name].append(clock() - started)
    return {name: values[warm:] for name, values in seconds.items()}


def ratio(seconds: Times, over: str, under: str, form: str = ".3f") -> str:
    """Median of `over` / `under` within each round, and between which values its middle half lies."""
    ratios = sorted(a / b for a, b in zip(seconds[over], seconds[under], strict=True))
    n = len(ratios)
    return f"{statistics.median(ratios):{form}} ({ratios[n // 4]:{form}} to {ratios[n - 1 - n // 4]:{form}})"


def median(seconds: list[float], per: int = 1) -> float:
    """Median of the rounds, divided by what one of them made."""
    return statistics.median(seconds) / per


# ---- what is measured ----


def build(
    args: argparse.Namespace, family: str, *overrides: str, captioned: bool = False
) -> tuple[DictConfig, ImageData, Family]:
    """A configuration as `python -m aigc.train` composes it, its data, and the family with its first weights."""
    source = ["data=mnist", f"data.root={args.root}"] if args.root else ["data=digits", "data.size=28"]
    source = [*source, "condition=label"]
    if family == "pix2pix":
        source = ["data=shapes_paired", "data.train=512", "condition=none"]
    if family in TRANSLATORS:
        source = ["data=shapes_unpaired", "data.train=512", "condition=none"]
        source += ["model.decay_from=1"]                      # the bare loops' rates are constant
    if family in AUTOENCODERS:
        source = [*source[:2], "condition=none", "model.decay_from=1", "model.adversarial_start=0",
                  "model.adversarial_warmup=0"]
    if family == "clip":
        source = ["data=shapes", "data.objects=mixed", "data.train=2048", "condition=text", "model.decay_from=1"]
    if captioned := captioned or family == "dalle":
        source = ["data=shapes", "data.train=2048", "condition=text" if family == "dalle" else "condition=none"]
    if family in STAGES:
        source += [f"model.{STAGES[family][0]}=untrained"]    # below
    common = ["metrics=none", "logger=none", f"seed={SEED}", "budget.minutes=null",
              "budget.images=1000000000", "callbacks.samples.every_images=1000000000", "callbacks.samples.n=10"]
    register_schemas()
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        cfg = compose("train", overrides=[f"model={family}", *source, *common, *overrides])
    data = prepare_data(cfg, check_compatible(cfg).accepts)
    L.seed_everything(SEED, verbose=False)
    facts = {"channels": data.channels, "size": tuple(data.size), "classes": data.classes,
             "condition": cfg.condition, "vocabulary": vocabulary_of(cfg, check_compatible(cfg), data)}
    if family in STAGES:            # on one as it starts out: what it has learned changes no times
        option, recipe, kind = STAGES[family]
        _, _, first = build(args, recipe, captioned=captioned)
        cfg.model[option] = {"family": f"aigc.models.{kind}", "sha256": "untrained",
                             "hyper_parameters": dict(first.hparams)}
        L.seed_everything(SEED, verbose=False)
    model = instantiate(cfg.model, "model", **facts).to(DEVICE)
    model.setup("fit")              # loads pretrained networks, which draws numbers: before any step
    return cfg, data, model


def loop(model: Family, data: ImageData, *, low: bool = PRECISION == "bf16-mixed") -> Iterator[None]:
    """The bare loop of `model` over the batches that the trainer sees: `next` is a step."""
    batches = iter(data.train_dataloader())
    return LOOPS[type(model).__name__](model, (data.prepare(batch, DEVICE) for batch in batches), low)


class Alternate(L.Callback):
    """After every `block` steps of the trainer runs as many of each bare loop; the trainer's clock stands meanwhile.

    A block of the trainer is all that lies between: fetching, every hook of every callback, logging.
    """

    def __init__(self, models: dict[str, Family], data: ImageData, *, rounds: int):
        self.models, self.block, self.rounds = models, BLOCKS[0][0], rounds
        self.loops = {name: loop(model, data) for name, model in models.items()}
        self.seconds: Times = {"ours": [], **{name: [] for name in models}}
        self.steps, self.started, self.apart = 0, 0.0, 0.0

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        self.steps += 1
        if self.steps == ALIKE:
            with pl_module.progress.paused():
                each = self.check(pl_module)
                self.block = next(block for block, least in BLOCKS if each < least)
        elif self.steps > ALIKE and (self.steps - ALIKE) % self.block == 0:
            self.seconds["ours"].append(clock() - self.started)
            with pl_module.progress.paused():
                for name, bare in self.loops.items():
                    started = clock()
                    for _ in range(self.block):
                        next(bare)
                    self.seconds[name].append(clock() - started)
            trainer.should_stop = len(self.seconds["ours"]) > self.rounds
        else:
            return
        self.started = clock()

    def check(self, model: Any) -> float:
        """Both sides' averaged weights after the first steps, seeded alike: largest difference over largest weight.

        Returns the seconds of a bare step, at its fastest.
        """
        each = []
        for bare in self.loops.values():
            for step in range(ALIKE):
                torch.manual_seed(mix(SEED, 0, step))
                started = clock()
                next(bare)
                each.append(clock() - started)
        ours, theirs = ((m.averages() or [(m,)])[0][0].state_dict() for m in (model, self.models["bare"]))
        apart = max(float((ours[k].float() - theirs[k].float()).abs().max()) for k in ours)
        self.apart = apart / max(float(v.float().abs().max()) for v in ours.values())
        return min(each)


def measure_step(args: argparse.Namespace) -> list[Row]:
    """`lightning.Trainer` with the default callbacks against the bare loop, and that against its own twin."""
    rows = []
    for family in FAMILIES + TRANSLATORS + AUTOENCODERS:
        with tempfile.TemporaryDirectory() as folder:
            cfg, data, model = build(args, family, f"trainer.precision={PRECISION}")
            trainer = build_trainer(cfg, Path(folder), model, {})
            copies = {"bare": copy.deepcopy(model), "twin": copy.deepcopy(model)}
            alternate = Alternate(copies, data, rounds=1 if args.quick else 14)
            trainer.callbacks.append(alternate)  # type: ignore[attr-defined]
            with contextlib.redirect_stderr(io.StringIO()):         # the bar's lines
                trainer.fit(model, datamodule=data)
            checkpoint = next(c for c in trainer.callbacks if type(c).__name__ == "Checkpoint")  # type: ignore
            saving = interleave({"save": lambda: checkpoint.save(trainer, model)}, 3)["save"]  # noqa: B023
        seconds = {name: values[1:] for name, values in alternate.seconds.items()}
        rows.append({
            "family": f"{family}, batch {cfg.batch_size}",
            "aigc, ms a step": 1e3 * median(seconds["ours"], alternate.block),
            "bare loop, ms": 1e3 * median(seconds["bare"], alternate.block),
            "aigc / bare": ratio(seconds, "ours", "bare"),
            "bare / its twin": ratio(seconds, "bare", "twin"),
            f"weights apart after {ALIKE} steps": alternate.apart,
            "a checkpoint, ms": 1e3 * median(saving),
        })
        show(rows[-1:])
    return rows


def measure_precision(args: argparse.Namespace) -> list[Row]:
    """Whole training steps in bf16 and float32 in turn, and whether `auto`, measured before them, took the faster."""
    rows = []
    for family in (*FAMILIES, *TRANSLATORS, "pix2pix"):
        _, data, model = build(args, family)
        with tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ, AIGC_CACHE=folder):
            started = time.perf_counter()
            auto, _ = settle_precision("auto", DEVICE, model, data)
            took = time.perf_counter() - started
        # the whole batch, whatever a step takes, and as many rounds as are wanted
        with mock.patch.multiple(precision, STEP=1e9, SECONDS=1e9, ROUNDS=2 if args.quick else 6, clock=clock):
            rehearsal = precision.steps(model, data)
        seconds = {name: values[1:] for name, values in rehearsal.seconds.items()}
        better = min(seconds, key=lambda name: statistics.median(seconds[name]))
        rows.append({
            "family": f"{family}, batch {data.batch_size}",
            "float32, ms a step": 1e3 * median(seconds["32-true"]), "bf16, ms": 1e3 * median(seconds["bf16-mixed"]),
            "float32 / bf16": ratio(seconds, "32-true", "bf16-mixed"), "auto": auto, "chosen in, s": took,
            "the better / auto": median(seconds[better]) / median(seconds[auto]),
        })
        show(rows[-1:])
    return rows


class Made(ImageData):
    """Random images of a data set's number and shape, in memory: for loaders, contents do not matter."""

    def __init__(self, n: int, channels: int, side: int, batch_size: int):
        super().__init__(batch_size=batch_size, seed=SEED)
        self.shape, self.classes = (n, channels, side, side), 10

    def load(self) -> dict[str, Split]:
        images = torch.randint(0, 256, self.shape, dtype=torch.uint8)
        return {"train": Split(images, torch.randint(0, 10, self.shape[:1]), digest="made")}


def measure_loader(args: argparse.Namespace) -> list[Row]:
    """Batches to float32 on the device: out of memory beside the fastest step that uses them, and from files."""
    rows, rounds = [], 2 if args.quick else 7
    for title, shape in (("MNIST-like, 60,000 x 1 x 28 x 28", (60_000, 1, 28)),
                         ("CIFAR-10-like, 50,000 x 3 x 32 x 32", (50_000, 3, 32))):
        for size in (64, 256):
            data = Made(*shape, batch_size=size)
            data.setup()
            cfg, _, _ = build(args, "gan")
            model = instantiate(cfg.model, "model", channels=shape[1], size=(shape[2],) * 2, classes=10,
                                condition="label").to(DEVICE)
            loader, step, block = iter(data.train_dataloader()), loop(model, data), 40
            seconds = interleave({
                "loader": lambda: [data.prepare(next(loader), DEVICE) for _ in range(block)],  # noqa: B023
                "step": lambda: [next(step) for _ in range(8)],                                # noqa: B023
            }, rounds)
            seconds["step"] = [s / 8 * block for s in seconds["step"]]
            rows.append({"images": title, "batch": size, "images/s": size * block / median(seconds["loader"]),
                         "share of a GAN step": ratio(seconds, "loader", "step", ".2%")})
            show(rows[-1:])
    for side, target in ((32, 32), (128, 64)):
        with tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ, AIGC_CACHE=f"{folder}/cache"):
            write_pngs(Path(folder) / "images", 200 if args.quick else 1000, side)
            for workers in (0, "auto"):
                data = ImageFolder(path=f"{folder}/images", batch_size=64, workers=workers, memory_gb=0, size=target)
                data.setup()
                batches, counted = iter(data.train_dataloader()), 15 if args.quick else 80
                for _ in range(20):     # the workers start, and what they fetched ahead is used up
                    next(batches)
                started = clock()
                for _ in range(counted):
                    data.prepare(next(batches), DEVICE)
                speed = 64 * counted / (clock() - started)
                what = f"PNGs of {side} px to {target} px, {data._workers() or 'no'} workers"
                rows.append({"images": what, "batch": 64, "images/s": speed, "share of a GAN step": ""})
                show(rows[-1:])
                del batches
    return rows


def write_pngs(folder: Path, n: int, side: int) -> None:
    """Writes `n` smooth RGB images, which compress about as photographs do."""
    from PIL import Image

    folder.mkdir(parents=True)
    images = F.interpolate(torch.rand(n, 3, 8, 8), (side, side), mode="bicubic").clamp(0, 1)
    pixels = (images + 0.02 * torch.randn_like(images)).clamp(0, 1).mul(255).byte().permute(0, 2, 3, 1).numpy()
    for k, picture in enumerate(pixels):
        Image.fromarray(picture).save(folder / f"{k:05}.png")


def measure_sampling(args: argparse.Namespace) -> list[Row]:
    """64 images in float32 by the averaged weights, as scores and `aigc.generate` make them."""
    rows, n, rounds = [], 64, 2 if args.quick else 6
    labels, seeds = [k % 10 for k in range(n)], list(range(n))
    cases: list[tuple[str, str, dict[str, Any]]] = [
        ("gan", "one pass", {}), ("vae", "normal prior", {"prior": "normal"}),
        ("vae", "mixture prior", {"prior": "mixture"}), ("diffusion", "Heun, 12 steps", {"guidance": 1.0}),
        ("diffusion", "Heun, 12 steps, guidance 1.5", {"guidance": 1.5}),
    ]
    for family, cased in itertools.groupby(cases, key=lambda case: case[0]):
        _, _, model = build(args, family)
        model.eval()
        if isinstance(model, VAE):      # latents such as training leaves behind
            model.latents.normal_()
            model.latent_labels.random_(0, 10)
            model.latents_seen.fill_(len(model.latents))
        drawn = {"gan": (model.hparams.get("latent"),), "vae": (1 + model.hparams.get("latent", 0),)}
        shape = drawn.get(family, (1, 28, 28))
        average: Any = model.averages()[0][0]
        heun = {"sampler": "heun", "steps": 12} if family == "diffusion" else {}
        options = {title: {**heun, **more} for _, title, more in cased}
        calls: dict[str, Callable[[], Any]] = {
            title: lambda o=o: model.sample(n, condition=labels, seeds=seeds, **o) for title, o in options.items()  # noqa: B023
        }
        counter = [0]
        hook = average.network.register_forward_hook(lambda *_: counter.append(counter.pop() + 1))  # noqa: B023
        evaluations = {}
        for title, call in calls.items():
            counter[0] = 0
            call()
            evaluations[title] = max(1, counter[0])
        hook.remove()
        seconds = interleave({**calls, "noise": lambda: SeededNoise(seeds, DEVICE)(*shape)}, rounds)  # noqa: B023
        for title in calls:
            rows.append({
                "family": family, "how": title, "images/s": n / median(seconds[title]),
                "network evaluations": evaluations[title],
                "ms an evaluation of 64": 1e3 * median(seconds[title], evaluations[title]),
                "share of seeded noise": ratio(seconds, "noise", title, ".2%"),
            })
            show(rows[-1:])
    return rows


class Output(nn.Module):
    """One of the two outputs of a feature network, as torchmetrics' metrics take it."""

    def __init__(self, network: FeatureNetwork, which: int):
        super().__init__()
        self.network, self.which, self.num_features = network, which, network.num_features

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images)[self.which]


class Given(FeatureNetwork):
    """Stands for a network whose features are given already."""

    name = "given"

    def __init__(self, num_features: int):
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:  # type: ignore[override]
        return features


def measure_scoring(args: argparse.Namespace) -> list[Row]:
    """Our Fréchet distance against torchmetrics' on the same features, then all three scores, images included."""
    rows = [row for width in ((512,) if args.quick else (512, 2048)) for row in frechet_distances(width, 3000)]
    torch.manual_seed(SEED)
    network = Classifier(1, (28, 28), classes=10).freeze().to(DEVICE)
    rows.append(all_scores(network, n=500 if args.quick else 2000, channels=1, rounds=2))
    show(rows[-1:])
    if not args.quick:
        rows.append(all_scores(random_inception().to(DEVICE), n=128, channels=3, rounds=1))
        show(rows[-1:])
    return rows


def frechet_distances(width: int, n: int) -> list[Row]:
    """Both sides' sums are there; what is timed is `compute`."""
    torch.manual_seed(SEED)
    one, other = (torch.randn(width, width) / width**0.5 for _ in range(2))
    real, fake = torch.randn(n, width) @ one, 0.1 + torch.randn(n, width) @ (one + 0.2 * other)
    ours, theirs = Suite(Given(width)).frechet, FrechetInceptionDistance(Given(width), reset_real_features=False)
    for metric in (ours, theirs):
        metric.update(real, real=True)
        metric.update(fake, real=False)
    values = {}

    def compute(metric: Any, *, forget: bool = False) -> None:
        metric._computed = None                                     # torchmetrics keeps the last value
        if forget:
            metric.forget_root()
        values[metric] = float(metric.compute())

    seconds = interleave({
        "first": lambda: compute(ours, forget=True), "later": lambda: compute(ours), "theirs": lambda: compute(theirs),
    }, 3)
    rows = []
    for name, title in (("first", ""), ("later", ", the real side's root kept")):
        rows.append({
            "what": f"Fréchet distance of {width} features{title}", "aigc, s": median(seconds[name]),
            "torchmetrics, s": median(seconds["theirs"]), "torchmetrics / aigc": ratio(seconds, "theirs", name),
            "numbers apart": abs(values[ours] / values[theirs] - 1),
        })
        show(rows[-1:])
    return rows


def all_scores(network: FeatureNetwork, *, n: int, channels: int, rounds: int) -> Row:
    """Fréchet distance, kernel distance and inception score of n images; the real side is there already."""
    real, fake = (torch.randint(0, top, (n, channels, 28, 28)).to(torch.uint8).to(DEVICE) for top in (256, 200))
    subsets = {"subsets": 20, "subset_size": n // 2}
    suite = Suite(network, kd_subsets=20, kd_subset_size=n // 2, seed=SEED)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        features, logits = Output(network, 0), Output(network, 1)
        distances: list[Any] = [FrechetInceptionDistance(features, reset_real_features=False),
                                KernelInceptionDistance(features, reset_real_features=False, **subsets)]
        inception = InceptionScore(logits)
    metrics = [metric.to(DEVICE) for metric in (*distances, inception)]
    found: dict[str, list[float]] = {}

    @torch.no_grad()
    def together() -> None:
        parts = [network(images) for images in fake.split(100)]
        scores = suite.compute(torch.cat([f for f, _ in parts]).cpu(), torch.cat([k for _, k in parts]).cpu())
        found["ours"] = list(scores.values())

    @torch.no_grad()
    def apart() -> None:
        torch.manual_seed(SEED)                                     # the same random subsets as ours
        for metric in metrics:
            metric.reset()
            for images in fake.split(100):
                metric.update(images, **({} if metric is inception else {"real": False}))
        values = [metric.compute() for metric in metrics]
        found["theirs"] = [float(v[0] if isinstance(v, tuple) else v) for v in values]

    with torch.no_grad():
        for images in real.split(100):
            suite.add_real(network(images)[0].cpu())
            for metric in distances:
                metric.update(images, real=True)
    seconds = interleave({"ours": together, "theirs": apart}, rounds, warm=int(rounds > 1))
    row = {
        "what": f"all three scores, {n} images, {network.name}", "aigc, s": median(seconds["ours"]),
        "torchmetrics, s": median(seconds["theirs"]), "torchmetrics / aigc": ratio(seconds, "theirs", "ours"),
        "numbers apart": ", ".join(
            f"{name} {abs(a / b - 1):.0e}"
            for name, a, b in zip(suite.names, found["ours"], found["theirs"], strict=True)
        ),
    }
    return row


def random_weights(path: Path) -> Path:
    """A file of random weights for Inception-v3."""
    from torch_fidelity import feature_extractor_inceptionv3 as source

    extractor = source.FeatureExtractorInceptionV3
    with (mock.patch.object(source, "load_state_dict_from_url", lambda *_, **__: {}),
          mock.patch.object(extractor, "load_state_dict", lambda *_: None)):
        network = extractor("inception-v3-compat", ["2048"])
    torch.save(scaled(network).state_dict(), path)
    return path


def scaled(network: nn.Module) -> nn.Module:
    """Random weights that keep the scale of the signal: distances are numbers then, and not rounding."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    return network


def random_inception() -> InceptionV3:
    """Inception-v3 as `metrics=inception` builds it, from a file of random weights: nothing is downloaded."""
    with tempfile.TemporaryDirectory() as folder:
        return InceptionV3(random_weights(Path(folder) / "random.pth"))


# ---- what is shown ----

SECTIONS: dict[str, tuple[str, Callable[[argparse.Namespace], list[Row]]]] = {
    "step": ("The training step against a bare PyTorch loop", measure_step),
    "precision": ("float32 against `trainer.precision=auto`", measure_precision),
    "loader": ("The loader alone", measure_loader),
    "sampling": ("Sampling", measure_sampling),
    "scoring": ("Scoring", measure_scoring),
}


def cell(value: Any) -> str:
    """A number with three digits or so, anything else as it is."""
    if not isinstance(value, float):
        return f"{value:,}" if isinstance(value, int) else str(value)
    if value == 0 or abs(value) < 1e-2:
        return f"{value:.0e}" if value else "0"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def show(rows: list[Row]) -> None:
    """Prints rows as they come."""
    for row in rows:
        print("  " + "; ".join(f"{name}: {cell(value)}" for name, value in row.items() if value != ""), flush=True)


def table(rows: list[Row]) -> str:
    """Rows of the same columns as a Markdown table."""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *([cell(v) for v in row.values()] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def machine() -> str:
    """What was measured on."""
    facts = environment()
    versions = f"torch {torch.__version__}, lightning {L.__version__}, torchmetrics {torchmetrics.__version__}"
    busy = os.getloadavg()[0] / (os.cpu_count() or 1)
    return f"{facts['machine']}; {torch.get_num_threads()} threads; {versions}; load before {busy:.2f} a core"


def report(results: dict[str, Any]) -> None:
    """Writes results.json and the tables between README.md's marks."""
    (HERE / "results.json").write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    readme = HERE / "README.md"
    before, after = readme.read_text().split(START)[0], readme.read_text().split(END)[1]
    parts = [f"### {title}\n\n{table(results[name]['rows'])}\n{results[name]['machine']}, {results[name]['when']}.\n"
             for name, (title, _) in SECTIONS.items() if name in results]
    readme.write_text(f"{before}{START}\n" + "\n".join(parts) + f"{END}{after}")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a minute, fewer rounds; writes nothing")
    parser.add_argument("--root", help="folder that holds torchvision's MNIST/; without it, embedded digits at 28 px")
    parser.add_argument("--only", default=",".join(SECTIONS), help="sections, comma-separated: %(default)s")
    args = parser.parse_args()
    chosen = args.only.split(",")
    if unknown := set(chosen) - set(SECTIONS):
        parser.error(f"--only knows {', '.join(SECTIONS)}; not {', '.join(sorted(unknown))}")
    quiet()
    keep_freed_memory()
    torch.set_float32_matmul_precision("high")                      # as aigc.training does, all three
    path = HERE / "results.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    for name in chosen:
        title, measure = SECTIONS[name]
        facts, started = machine(), time.perf_counter()
        print(f"\n{title} ({facts})", flush=True)
        rows = measure(args)
        print(f"\n{table(rows)}\n{time.perf_counter() - started:.0f} s", flush=True)
        results[name] = {"rows": rows, "machine": facts, "when": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")}
    if not args.quick:
        report(results)


if __name__ == "__main__":
    main()
