"""How fast scores are taken: aigc beside torch-fidelity and torchmetrics' default, alternating in one process.

    python experiments/speed/scoring.py [--images 10000] [--inception 100] [--rounds 3] [--weights <file>]

Everything goes from folders of PNGs to FID, KID (100 subsets of 1,000, or as many as there are) and IS over one
network. torch-fidelity gets the network as one of its extractors, or its own Inception-v3 over the same weights file;
torchmetrics' metrics each look for themselves, as they do by default. Without `--weights` Inception-v3's are random:
speed does not depend on them. Writes scoring.json and the tables of README.md; above 1, a ratio says aigc is faster.
"""

import argparse
import contextlib
import io
import json
import os
import tempfile
import warnings
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch_fidelity
from measure import (
    DEVICE,
    HERE,
    SEED,
    Output,
    Row,
    interleave,
    machine,
    median,
    random_weights,
    ratio,
    scaled,
    show,
    table,
    write_pngs,
)
from PIL import Image
from torch import Tensor
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.inception import InceptionScore
from torchmetrics.image.kid import KernelInceptionDistance

from aigc.runs.machine import keep_freed_memory
from aigc.scoring.networks.classifier import Classifier
from aigc.scoring.networks.features import FeatureNetwork
from aigc.scoring.networks.inception import InceptionV3
from aigc.scoring.panel import How, Panel
from aigc.scoring.sources import FolderSource
from aigc.scoring.suite import Suite

START, END = "<!-- scoring: written by scoring.py -->", "<!-- end of scoring -->"
SUBSETS, SIZE = 100, 1000      # of the kernel distance, everywhere
BATCH = 50
THEIRS = {"fd": "frechet_inception_distance", "kd": "kernel_inception_distance_mean", "is": "inception_score_mean"}


def extractor_of(network: FeatureNetwork) -> type[FeatureExtractorBase]:
    """The network as torch-fidelity takes one."""

    class Extractor(FeatureExtractorBase):
        def __init__(self, name: str, features_list: list[str], **_: Any):
            super().__init__(name, features_list)
            self.network = network

        def forward(self, images: Tensor) -> tuple[Tensor, ...]:
            features, logits = self.network(images)
            return tuple({"features": features, "logits": logits}[name] for name in self.features_list)

        get_provided_features_list = staticmethod(lambda: ("features", "logits"))
        get_default_feature_layer_for_metric = staticmethod(lambda metric: "logits" if metric == "isc" else "features")
        can_be_compiled = staticmethod(lambda: False)

    return Extractor


class Contest:
    """Three ways to the scores of one folder against another, over one network."""

    def __init__(self, network: FeatureNetwork, folders: tuple[Path, Path], n: int, *, weights: Path | None):
        self.network, self.folders, self.n = network, folders, n
        self.size = min(SIZE, n)
        self.options: dict[str, Any] = {"feature_extractor_weights_path": str(weights)} if weights else {}
        if weights is None:
            name = f"aigc-{network.name}"
            if name not in torch_fidelity.registry.FEATURE_EXTRACTORS_REGISTRY:
                torch_fidelity.register_feature_extractor(name, extractor_of(network))
            self.options = {"feature_extractor": name}
        self.found: dict[str, list[float]] = {}

    @torch.no_grad()
    def ours(self) -> None:
        """Both folders looked at, nothing in the cache."""
        how = How(kd_subsets=SUBSETS, kd_subset_size=SIZE, neighbours=0, memorisation=False, resamples=0,
                  num_reals=None, batch_size=BATCH, seed=SEED)
        fakes, reals = (FolderSource(folder, "folder", channels=3) for folder in self.folders)
        panel = Panel(self.network, how)
        with tempfile.TemporaryDirectory() as cache, mock.patch.dict(os.environ, AIGC_CACHE=cache):
            panel.learn(reals)
        panel.begin(self.n)
        for batch in fakes.batches(self.n, BATCH):
            panel.look(batch["image"])
        self.found["ours"] = [score.value for score in panel.scores().values()]    # fd, kd, is

    def fidelity(self) -> None:
        """torch-fidelity's, without its cache."""
        with contextlib.redirect_stderr(io.StringIO()):
            scores = torch_fidelity.calculate_metrics(
                input1=str(self.folders[0]), input2=str(self.folders[1]), fid=True, kid=True, isc=True, cache=False,
                kid_subsets=SUBSETS, kid_subset_size=self.size, batch_size=BATCH, cuda=DEVICE == "cuda", verbose=False,
                **self.options,
            )
        self.found["fidelity"] = [scores[name] for name in THEIRS.values()]

    @torch.no_grad()
    def torchmetrics(self) -> None:
        """Its three metrics as they are by default: each with a look of its own."""
        features, logits = Output(self.network, 0), Output(self.network, 1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            metrics: list[Any] = [FrechetInceptionDistance(features), InceptionScore(logits),
                                  KernelInceptionDistance(features, subsets=SUBSETS, subset_size=self.size)]
        for metric in metrics:
            metric.to(DEVICE)
        for real, folder in zip((False, True), self.folders, strict=True):
            for batch in FolderSource(folder, "folder", channels=3).batches(self.n, BATCH):
                for metric in metrics:
                    if not isinstance(metric, InceptionScore):
                        metric.update(batch["image"].to(DEVICE), real=real)
                    elif not real:
                        metric.update(batch["image"].to(DEVICE))
        fd, score, kd = (metric.compute() for metric in metrics)
        self.found["torchmetrics"] = [float(fd), float(kd[0]), float(score[0])]

    def row(self, what: str, rounds: int) -> Row:
        """One line of the table."""
        seconds = interleave({"ours": self.ours, "fidelity": self.fidelity, "torchmetrics": self.torchmetrics}, rounds,
                             warm=int(rounds > 1))
        row = line(what, seconds)
        apart = [abs(a / b - 1) for a, b in zip(self.found["ours"], self.found["fidelity"], strict=True)]
        row["numbers apart from torch-fidelity"] = f"fd {apart[0]:.0e}, kd {apart[1]:.0e}, is {apart[2]:.0e}"
        show([row])
        return row


def darken(folder: Path) -> None:
    """Makes the images of a folder a third darker, so that there is a distance to measure."""
    for file in folder.iterdir():
        Image.open(file).point(lambda value: 2 * value // 3).save(file)


def line(what: str, seconds: dict[str, list[float]]) -> Row:
    """Seconds and ratios of the alternatives."""
    row: Row = {"what": what, "aigc, s": median(seconds["ours"])}
    for name in ("fidelity", "torchmetrics"):
        title, there = {"fidelity": "torch-fidelity"}.get(name, name), name in seconds
        row[f"{title}, s"] = median(seconds[name]) if there else ""
        row[f"{title} / aigc"] = ratio(seconds, name, "ours") if there else ""
    return row


class Given(FeatureNetwork):
    """Stands for a network whose features are given already."""

    name, num_features = "given", 2048


def statistics_row(n: int, rounds: int) -> Row:
    """What is left once Inception-v3 has looked: scores from 2,048 features and 1,008 logits of n images a side."""
    torch.manual_seed(SEED)
    mixing = torch.randn(2048, 2048) / 2048**0.5
    real, fake = torch.randn(n, 2048) @ mixing, 0.1 + torch.randn(n, 2048) @ mixing
    logits, size = torch.randn(n, 1008), min(SIZE, n)
    found: dict[str, list[float]] = {}

    def ours() -> None:
        suite = Suite(Given(), kd_subsets=SUBSETS, kd_subset_size=size, seed=SEED)
        suite.add_real(real)
        found["ours"] = list(suite.compute(fake, logits).values())

    def fidelity() -> None:
        sides = [fid_features_to_statistics(features) for features in (fake, real)]
        options = {"kid_subsets": SUBSETS, "kid_subset_size": size, "verbose": False}
        scores = {**fid_statistics_to_metric(*sides, verbose=False), **isc_features_to_metric(logits),
                  **kid_features_to_metric(fake, real, **options)}
        found["fidelity"] = [scores[name] for name in THEIRS.values()]

    calls: dict[str, Callable[[], Any]] = {"ours": ours, "fidelity": fidelity}
    row = line(f"scores alone, {n:,} images a side, 2,048 features", interleave(calls, rounds, warm=0))
    apart = [abs(a / b - 1) for a, b in zip(found["ours"], found["fidelity"], strict=True)]
    row["numbers apart from torch-fidelity"] = f"fd {apart[0]:.0e}, kd {apart[1]:.0e}, is {apart[2]:.0e}"
    show([row])
    return row


def report(results: dict[str, Any]) -> None:
    """Writes scoring.json and the tables between README.md's marks."""
    (HERE / "scoring.json").write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    readme = HERE / "README.md"
    text = readme.read_text()
    if START in text:
        before, after = text.split(START)[0], text.split(END)[1]
        rows = table(results["rows"])
        readme.write_text(f"{before}{START}\n{rows}\n{results['machine']}, {results['when']}.\n{END}{after}")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10_000, help="a side, for the small network: %(default)s")
    parser.add_argument("--inception", type=int, default=100, help="a side, for Inception-v3; 0: none: %(default)s")
    parser.add_argument("--rounds", type=int, default=3, help="of the small network: %(default)s")
    parser.add_argument("--weights", type=Path, help="Inception-v3's, torch-fidelity's file; without: random ones")
    args = parser.parse_args()
    keep_freed_memory()
    torch.manual_seed(SEED)
    facts, rows = machine(), []
    with tempfile.TemporaryDirectory() as scratch:
        folders = Path(scratch) / "fake", Path(scratch) / "real"
        for folder in folders:
            write_pngs(folder, max(args.images, args.inception), 32)
        darken(folders[0])
        network = Classifier(3, (32, 32), classes=10)
        scaled(network).to(DEVICE)
        network.freeze()
        network.sha256 = "untrained"
        rows.append(Contest(network, folders, args.images, weights=None).row(
            f"{args.images:,} PNGs of 32 px a side, classifier of 256 features", args.rounds))
        if args.inception:
            weights = args.weights or random_weights(Path(scratch) / "random.pth")
            few = Path(scratch) / "few_fake", Path(scratch) / "few_real"
            for source, folder in zip(folders, few, strict=True):
                folder.mkdir()
                for file in sorted(source.iterdir())[: args.inception]:
                    (folder / file.name).symlink_to(file)
            rows.append(Contest(InceptionV3(weights).to(DEVICE), few, args.inception, weights=weights).row(
                f"{args.inception:,} PNGs of 32 px a side, Inception-v3", 1))
            rows.append(statistics_row(args.images, 1))
    report({"rows": rows, "machine": facts, "when": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")})
    print(f"\n{table(rows)}\n{facts}")


if __name__ == "__main__":
    main()
