"""Muon for weight matrices and AdamW for everything else, in one optimizer.

Muon (Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks") replaces the momentum of a weight
matrix by the nearest semi-orthogonal matrix, so that every direction is learned equally fast, also those whose
gradients are small. A convolution's kernel `(out, in, h, w)` counts as a matrix `(out, in h w)`.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

COEFFICIENTS = (3.4445, -4.7750, 2.0315)      # of the quintic polynomial, Jordan et al. 2024
STEPS = 5                                     # of the iteration: singular values end between 0.7 and 1.2
LEAST = 16                                    # rows of a hidden layer's matrix; smaller ones are left to AdamW


def orthogonalized(matrix: Tensor) -> Tensor:
    """The matrix `(rows, columns)` with all its singular values near 1, by a Newton-Schulz iteration in float32."""
    a, b, c = COEFFICIENTS
    x = matrix.float()
    x = x / (x.norm() + 1e-7)
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    for _ in range(STEPS):
        products = x @ x.T
        x = a * x + (b * products + c * products @ products) @ x
    return x.T if tall else x


def hidden_matrices(network: nn.Module, *, without: Sequence[nn.Module] = ()) -> list[Tensor]:
    """Kernels of the convolutions of a network, except of the layers `without`: its first and last ones."""
    left_out = {id(parameter) for layer in without for parameter in layer.parameters()}
    return [module.weight for module in network.modules() if isinstance(module, nn.Conv2d)
            and module.weight.shape[0] >= LEAST and id(module.weight) not in left_out]


class Muon(torch.optim.AdamW):
    """AdamW (Loshchilov and Hutter 2019) that leaves some of its parameters, `matrices`, to Muon.

    All are one group in the order of `parameters`, as FSDP's checkpoints expect.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        matrices: Sequence[Tensor],             # those of the parameters that Muon moves
        *,
        lr: float,                              # of AdamW
        matrix_lr: float,                       # of Muon: about the spectral norm of an update
        momentum: float = 0.95,                 # of Muon, as Nesterov's
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.0,              # of both, decoupled: a share of the rate
    ):
        super().__init__(parameters, lr=lr, betas=betas, weight_decay=weight_decay, fused=True)
        (group,) = self.param_groups
        group |= {"ratio": matrix_lr / lr if lr else 0.0, "momentum": momentum}     # a schedule moves both rates
        self.matrices = list(matrices)
        self._step_supports_amp_scaling = False          # fp16: gradients come unscaled, for Muon as well

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step of both; AdamW does not see the gradients of matrices."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        gradients = [matrix.grad for matrix in self.matrices]
        for matrix in self.matrices:
            matrix.grad = None
        super().step()
        for matrix, gradient in zip(self.matrices, gradients, strict=True):
            matrix.grad = gradient
            if gradient is not None:
                self._move(matrix, gradient, self.param_groups[0])
        return loss

    def _move(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.tensor(0.0)                # AdamW expects the number of steps in every state
            state["momentum"] = torch.zeros_like(parameter)
        state["step"] += 1
        state["momentum"].lerp_(gradient, 1 - group["momentum"])
        ahead = gradient.lerp(state["momentum"], group["momentum"])
        update = orthogonalized(whole(ahead).flatten(1)).view(parameter.shape)
        scale = max(1.0, parameter.shape[0] / parameter[0].numel()) ** 0.5
        rate = group["lr"] * group["ratio"]
        parameter.mul_(1 - rate * group["weight_decay"])
        parameter.sub_(like(update.to(parameter.dtype), parameter), alpha=rate * scale)


def whole(tensor: Tensor) -> Tensor:
    """The tensor itself, or all shards of one that lies on several devices (FSDP2)."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor  # type: ignore[operator]


def like(tensor: Tensor, other: Tensor) -> Tensor:
    """The tensor laid out over devices as `other` is."""
    if not hasattr(other, "full_tensor"):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor, other.device_mesh, other.placements)  # type: ignore[attr-defined]
