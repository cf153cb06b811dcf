"""Makes the canonical networks of the package: `python -m aigc.scoring.networks.canonical <names>`, of NAMES.

Scores of two laboratories are comparable only with the same network, so these are trained once, committed, and
verified by their hash wherever they are loaded. A new network is a new scale: old scores no longer compare.

They train on one thread in float32, for twice as long as networks that are trained on the user's machine, and are
rounded to half precision before they are tested. Shapes are rendered from a separate seed, so that nobody's test
images are among the training images; one network learns scenes of one and of two objects. Digits and MNIST are split
as by default.
"""

import argparse
import json
import logging
import platform
import time
from typing import Any

import torch

from aigc.data.datamodule import ImageData
from aigc.data.digits import Digits
from aigc.data.scenes import VERSION as DRAWING
from aigc.data.shapes import Shapes
from aigc.data.split import Split
from aigc.data.vision import Vision
from aigc.runs.machine import environment
from aigc.scoring.networks import oracle
from aigc.scoring.networks.classifier import described, train_classifier
from aigc.scoring.networks.stored import FOLDER, LIST, encode, read

NAMES = ("shapes", "digits", "mnist", "oracle", "oracle_rich")
SEEN = {"shapes": 400_000, "digits": 72_000, "mnist": 240_000}      # images in training
RENDERS = 60_000            # shapes in training
SEED = 20180321             # of the shapes: differs from any usual `split_seed`
POOL, EPOCHS = 32_000, 6    # of the oracle: renders and epochs; that of rich captions has its defaults

log = logging.getLogger(__name__)


class AllShapes(Shapes):
    """Scenes of one object and scenes of one or two objects, in equal numbers."""

    def load(self) -> dict[str, Split]:
        """Both kinds in one set; it fits in memory."""
        parts = []
        for objects in ("1", "mixed"):
            self.objects = objects
            parts.append(super().load())
        joined = {}
        for name in parts[0]:
            images = torch.cat([part[name].images for part in parts])  # type: ignore[misc]
            labels = torch.cat([part[name].labels for part in parts])  # type: ignore[misc]
            joined[name] = Split(images, labels)
        return joined


def data_of(name: str, root: str) -> ImageData:
    """The training data of the classifier called `name`, set up."""
    data: ImageData
    if name == "shapes":
        data = AllShapes(batch_size=500, split_seed=SEED, train=RENDERS // 2, test=2500, heldout=1, validation=1)
        data.name = "shapes"
    elif name == "digits":
        data = Digits(batch_size=500)
    else:
        data = Vision("mnist", batch_size=500, root=root)
    data.prepare_data()
    data.setup()
    return data


def make(name: str, root: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Trains the canonical network called `name`; returns its weights and facts."""
    if name.startswith("oracle"):
        size, language = (32, 32), name.removeprefix("oracle").lstrip("_") or "plain"
        pool, epochs = (POOL, EPOCHS) if language == "plain" else (None, None)
        trained = oracle.train_oracle(size, language=language, pool=pool, epochs=epochs)
        return trained.state_dict(), {"network": "oracle", "version": oracle.VERSION, "data": "shapes",
                                      "size": list(size), "drawing": DRAWING}
    data = data_of(name, root)
    network, accuracy = train_classifier(data, images=SEEN[name], halves=True)
    drawn = {"drawing": DRAWING} if name == "shapes" else {}
    return network.state_dict(), {**described(data, accuracy), **drawn}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m aigc.scoring.networks.canonical", description=__doc__.splitlines()[0]
    )
    parser.add_argument("names", nargs="+", choices=NAMES)
    parser.add_argument("--root", default="data_cache", help="folder that holds torchvision's MNIST/")
    args = parser.parse_args()
    torch.set_num_threads(1)
    FOLDER.mkdir(exist_ok=True)
    for name in args.names:
        started = time.perf_counter()
        weights, facts = make(name, args.root)
        path = FOLDER / f"{name}.safetensors"
        path.write_bytes(encode(weights, facts, small=True))
        made = {"torch": torch.__version__, "processor": environment()["machine"], "threads": 1, "dtype": "float32",
                "python": platform.python_version(), "seconds": round(time.perf_counter() - started)}
        listed = json.loads(LIST.read_text()) if LIST.is_file() else {}
        listed[name] = {"sha256": read(path).sha256, **facts, "made": made}
        LIST.write_text(json.dumps(dict(sorted(listed.items())), indent=1) + "\n")
        print(f"{path}: {path.stat().st_size:,} bytes, {listed[name]}")


if __name__ == "__main__":
    main()
