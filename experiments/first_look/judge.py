"""An independent judge of the study's runs: a classifier that shares nothing with the platform's own.

    python experiments/first_look/judge.py data.root=<folder with MNIST/raw>

256 features of a fully connected layer, trained once on the 55,000 training digits and kept in
runs/first_look/judge.pt. Every finished run makes 2,000 images, 200 a class, from seeds that no score during training
used; the floor is 200 test images a class against the training set. Writes `judge.json`, which study.py puts into its
table.
"""

import json
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from study import HERE, STUDY, finished
from torch import Tensor, nn

from aigc.data.vision import Vision
from aigc.images.grids import to_uint8
from aigc.models.checkpoints import load_family
from aigc.noise import mix
from aigc.scoring.scores.frechet import frechet_distance

SEED = 20261121  # of the judged images
EPOCHS, BATCH, RATE = 5, 128, 3e-3


def build() -> nn.Sequential:
    """Five convolutions, then 256 features, then ten classes."""
    layers: list[nn.Module] = []
    for i, (inputs, outputs) in enumerate([(1, 32), (32, 32), (32, 64), (64, 64), (64, 96)]):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if i in (1, 3) else []
    features = [nn.Flatten(), nn.Dropout(0.3), nn.Linear(96 * 49, 256), nn.BatchNorm1d(256), nn.ReLU()]
    return nn.Sequential(*layers, *features, nn.Linear(256, 10))


@torch.enable_grad()
def trained(images: Tensor, labels: Tensor) -> nn.Sequential:
    """The judge, trained on digits shifted by up to two pixels, or as it was kept."""
    torch.manual_seed(0)
    judge, path = build(), Path("runs") / STUDY / "judge.pt"
    if path.is_file():
        judge.load_state_dict(torch.load(path, weights_only=True))
        return judge.eval()
    steps = EPOCHS * (len(images) // BATCH)
    optimizer = torch.optim.AdamW(judge.parameters(), RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    padded = F.pad(images, (2, 2, 2, 2))
    for epoch in range(EPOCHS):
        for part in torch.randperm(len(images)).split(BATCH)[: len(images) // BATCH]:
            top, left = torch.randint(5, (2,)).tolist()
            x = scaled(padded[part, :, top : top + 28, left : left + 28])
            with torch.autocast("cpu", torch.bfloat16):
                loss = F.cross_entropy(judge(x), labels[part], label_smoothing=0.02)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f"epoch {epoch + 1}: loss {loss.item():.3f}", flush=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(judge.state_dict(), path)
    return judge.eval()


def scaled(images: Tensor) -> Tensor:
    """uint8 to [-1, 1]."""
    return images.float() / 127.5 - 1


@torch.no_grad()
def look(judge: nn.Sequential, images: Tensor) -> tuple[Tensor, Tensor]:
    """Features `(n, 256)` in float64 and predicted classes `(n,)` of uint8 images."""
    features = torch.cat([judge[:-1](scaled(part)) for part in images.split(500)])
    return features.double(), judge[-1](features).argmax(1)


def moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and covariance."""
    return features.mean(0), torch.cov(features.T)


def main() -> None:
    """Judges every finished run."""
    root = next((word.split("=", 1)[1] for word in sys.argv[1:] if word.startswith("data.root=")), "data_cache")
    data = Vision("mnist", batch_size=64, root=root)
    data.prepare_data()
    data.setup()
    train, train_labels, test, test_labels = (
        *(data.images("train"), data.labels("train")), *(data.images("test"), data.labels("test")),
    )
    judge = trained(train, train_labels)
    accuracy = (look(judge, test)[1] == test_labels).double().mean().item()
    reference = moments(look(judge, train)[0])
    chosen = torch.cat([(test_labels == k).nonzero()[:200, 0] for k in range(10)])
    floor = float(frechet_distance(*moments(look(judge, test[chosen])[0]), *reference))
    verdict: dict = {"accuracy": accuracy, "floor": floor, "runs": {}}
    labels = torch.arange(2000) % 10
    for name, run in finished().items():
        family = load_family(run.folder, "last")
        made = torch.cat([
            to_uint8(family.sample(len(part), condition=labels[part], seeds=[mix(SEED, int(k)) for k in part]))
            for part in torch.arange(2000).split(250)
        ])
        features, seen = look(judge, made)
        ratio = float(frechet_distance(*moments(features), *reference)) / floor
        verdict["runs"][run.name] = {"label_accuracy": (seen == labels).double().mean().item(), "over_floor": ratio}
        print(name, verdict["runs"][run.name], flush=True)
    (HERE / "judge.json").write_text(json.dumps(verdict, indent=2) + "\n")


if __name__ == "__main__":
    main()
