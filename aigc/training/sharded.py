"""Large networks on many devices: weights, gradients and optimizer state are sharded over the devices (FSDP2).

- A family lists in `sharded` the networks that may be sharded; they are only called through `forward`. Every block in
  their lists of blocks is gathered for its forward and backward, then freed again (Zhao et al. 2023, PyTorch FSDP).
- The averaged copy stays whole on every device, so it samples without communication.
- Checkpoints are those of one device: gathered on rank 0, one file, read by everything that reads checkpoints.
"""

import warnings
from typing import Any

import lightning as L
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn

from aigc.errors import UserError
from aigc.models.family import Family

PRECISIONS = ("32-true", "bf16-mixed")  # supported by Lightning with FSDP2; fp16's scaler is not


class Sharded(ModelParallelStrategy):
    """Lightning's strategy for FSDP2, with the sharding done here instead of in each family's `configure_model`."""

    def __init__(self, processes: int) -> None:
        super().__init__(data_parallel_size=processes, tensor_parallel_size=1, save_distributed_checkpoint=False)

    def setup(self, trainer: L.Trainer) -> None:
        """Moves the family to the device, shards its networks, then creates the optimizers."""
        assert isinstance(self.model, Family) and self.accelerator is not None
        self.accelerator.setup(trainer)
        warnings.filterwarnings("ignore", message=".*returned a view tensor")  # nothing is modified in place here
        self.model_to_device()
        # Lightning names optimizer state by the parameter's place in the family, every other strategy by that in the
        # optimizer: a checkpoint is anyone's where both are the same
        trained = [p for name in self.model.sharded for p in getattr(self.model, name).parameters()]
        first = zip(trained, self.model.parameters(), strict=False)
        assert all(a is b for a, b in first), f"{self.model.sharded} must be registered before all other networks"
        for name in self.model.sharded:
            shard(getattr(self.model, name), self.device_mesh["data_parallel"])
        self.barrier()
        if trainer.state.fn == TrainerFn.FITTING:
            self.setup_optimizers(trainer)
        self.setup_precision_plugin()


def shard(network: nn.Module, mesh: Any) -> None:
    """Shards a network's parameters over a one-dimensional device mesh, in place: each listed block, then the rest."""
    from torch.distributed.fsdp import fully_shard

    for module in list(network.modules()):
        if isinstance(module, nn.ModuleList):
            for block in module.children():
                if not isinstance(block, nn.ModuleList) and any(True for _ in block.parameters()):
                    fully_shard(block, mesh=mesh)
    fully_shard(network, mesh=mesh)


def local(tensor: Tensor) -> Tensor:
    """This device's shard of a parameter; the parameter itself if it is whole."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor  # type: ignore[operator]


def check_shardable(model: Family, precision: str) -> None:
    """Refuses a family or precision that cannot be sharded.

    Raises:
        UserError: says what to use instead.
    """
    if not model.sharded:
        raise UserError(
            f"trainer=fsdp shards one large network, but {type(model).__name__} has several or small ones: use "
            "trainer=ddp"
        )
    if precision not in PRECISIONS:
        raise UserError(f"trainer=fsdp trains in {' or '.join(PRECISIONS)}, not in {precision}: choose one of them")
