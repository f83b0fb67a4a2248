"""Muon: an optimizer that moves every direction of a weight matrix equally far, and learns in few epochs."""

from collections.abc import Iterable

import torch
from torch import Tensor

from helpers import evaluation
from helpers.types import NotNegative, ShareBelowOne, checked

COEFFICIENTS = 3.4445, -4.7750, 2.0315  # of x, x^3 and x^5: steep near 0, near 1 above


class Muon(torch.optim.Optimizer):
    """Nesterov momentum whose steps are orthogonalised (Jordan 2024, "Muon").

    A few directions dominate the gradient of a weight matrix. ``orthogonalize`` makes all of them about
    equally long before the step is taken, and the weight is held at norm sqrt(outputs), as airbench94_muon
    does: ``lr`` is then about the share of a weight that one step replaces. It is made for networks with
    batch normalisation, which do not mind the scale of their weights. Biases and normalisation go by SGD.

    Args:
        params: weights, or groups of them; those of a group with ``"orthogonal": False`` go by SGD, too.
        lr: of orthogonalised steps, and of SGD's.
        momentum: of Nesterov's method, in [0, 1).
        weight_decay: of what goes by SGD; the other weights' norm is held anyway.
        orthogonal: whether weights of two or more dimensions, seen as outputs x rest, are orthogonalised.
    """

    @checked
    def __init__(
        self,
        params: Iterable,
        lr: NotNegative = 0.1,
        momentum: ShareBelowOne = 0.6,
        weight_decay: NotNegative = 0.0,
        orthogonal: bool = True,
    ) -> None:
        settings = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "orthogonal": orthogonal}
        super().__init__(params, settings)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Move each weight that has a gradient by one step."""
        for group in self.param_groups:
            for weight in [weight for weight in group["params"] if weight.grad is not None]:
                state, matrix = self.state[weight], group["orthogonal"] and weight.ndim > 1
                gradient = weight.grad.add(weight, alpha=0 if matrix else group["weight_decay"])
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(weight)
                state["momentum_buffer"].mul_(group["momentum"]).add_(gradient)
                move = gradient.add(state["momentum_buffer"], alpha=group["momentum"])
                if matrix:
                    weight.mul_(len(weight) ** 0.5 / weight.norm().clamp_min(1e-7))
                    move = orthogonalize(move.flatten(1)).view(weight.shape)
                weight.add_(move, alpha=-group["lr"])


def orthogonalize(matrix: Tensor, steps: int = 3) -> Tensor:
    """Return about U V^T of a matrix U S V^T: Newton-Schulz iteration brings its singular values near 1.

    An odd polynomial of a matrix acts on the singular values alone, so it takes products and no
    decomposition. They are computed in bfloat16 where the processor has it: exact enough for a step.

    Args:
        matrix: N x M.
        steps: after 3, singular values above 1/50 of the matrix's norm are from 0.68 to 1.21, others less.
    """
    if len(matrix) > matrix.shape[1]:
        return orthogonalize(matrix.T, steps).T  # the products below are then smaller
    a, b, c = COEFFICIENTS
    dtype = torch.bfloat16 if evaluation.has_bf16(matrix.device.type) else torch.float32
    x = (matrix / (matrix.norm() + 1e-7)).to(dtype)  # no singular value above 1
    for _ in range(steps):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    return x.to(matrix.dtype)
