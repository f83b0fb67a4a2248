"""Comparisons that need equal conditions: our methods beside those of well-known libraries, and one pipeline in three orders.

Everybody starts from the same teacher and is trained on by the same loop, for as many epochs, with the same loss.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
import torch.nn.utils.prune
from torch import nn

from helpers import checks, low_rank, profiling, pruning, quantization
from helpers.data import Data
from helpers.training import Callback, Loss, fit

ORDERS = ("factorize, prune, quantize", "prune, factorize, quantize", "quantize, factorize, prune")
SPARSITY, SMALLER, CHANNEL_TOLERANCE = (
    0.9,
    4,
    0.05,
)  # what every tool is asked for: zeros; times fewer parameters; see ratios_by_sensitivity

Compressed = tuple[nn.Module, Sequence[Callback]]


def train(
    model: nn.Module, data: Data, loss: Loss, epochs: int, lr: float, callbacks: Sequence[Callback] = ()
) -> None:
    """Train a compressed network on, in place: the same for all that are compared."""
    checks.instance("data", data, Data)
    glance = replace(data, validation=data.validation.take(slice(0, 1_000)))
    fit(model, glance, epochs=epochs, lr=lr, batch_size=128, warmup=0.05, loss=loss, callbacks=callbacks)


def in_order(order: str, model: nn.Module, data: Data, loss: Loss, epochs: int, lr: float) -> nn.Module:
    """Compress ``model`` by the techniques that ``order`` names, one after the other; return the result, not yet exported.

    "factorize" leaves a quarter of parameters and MACs, "prune" takes 60% of the weights gradually, "quantize" rounds the weights to
    8 bits; last in the order it is left to the export. Factorizing and pruning are each followed by half of the epochs.
    """
    checks.instance("model", model, nn.Module)
    checks.instance("data", data, Data)
    checks.instance("loss", loss, Callable)
    checks.number("lr", lr, 0, open_low=True)
    half = max(1, checks.integer("epochs", epochs, 1) // 2)
    steps = checks.choice("order", order, ORDERS).split(", ")
    for step in steps:
        if step == "factorize":
            model = low_rank.factorize(
                model, budget=1 / SMALLER, count="both", round_to=8, pictures=data.train.take(slice(0, 300))
            )
            train(model, data, loss, half, lr)
        elif step == "prune":
            train(
                model, data, loss, half, lr, [pruning.GradualPruner(pruning.PolynomialSchedule(0.6, end=0.7))]
            )
        elif step != steps[-1]:
            model = quantization.round_weights(model, 8)
    return model


def on_grid(model: nn.Module, bits: int = 8) -> float:
    """Return the share of non-zero Conv2d and Linear weights that lie on their channel's ``bits``-bit grid."""
    checks.integer("bits", bits, 2, 16)
    on = total = 0
    for weight in pruning.prunable(model).values():
        weight = weight.detach()
        alive = weight != 0
        step = weight.abs().flatten(1).amax(1).clamp_min(1e-12).view(-1, *[1] * (weight.ndim - 1)) / (
            2 ** (bits - 1) - 1
        )
        off = (weight - quantization.round_to_grid(weight, bits)).abs() / step
        on, total = on + int(((off < 1e-3) & alive).sum()), total + int(alive.sum())
    return on / max(1, total)


def settled(model: nn.Module) -> nn.Module:
    """Return ``model`` with torch.nn.utils.prune's masks multiplied into the weights, where it has any."""
    for layer in checks.instance("model", model, nn.Module).modules():
        if hasattr(layer, "weight_mask"):
            nn.utils.prune.remove(layer, "weight")
    return model


def torch_prune(model: nn.Module, data: Data, ratios: dict[str, float]) -> Compressed:
    """90% zeros by torch.nn.utils.prune: all at once, over all layers, masked from then on."""
    layers = [(model.get_submodule(name), "weight") for name in pruning.prunable(model)]
    nn.utils.prune.global_unstructured(layers, nn.utils.prune.L1Unstructured, amount=SPARSITY)
    return model, ()


def gradual_pruner(model: nn.Module, data: Data, ratios: dict[str, float]) -> Compressed:
    """90% zeros by our GradualPruner."""
    return checks.instance("model", model, nn.Module), [
        pruning.GradualPruner(pruning.PolynomialSchedule(SPARSITY, end=0.7))
    ]


def channels_by_sensitivity(model: nn.Module, data: Data, ratios: dict[str, float]) -> Compressed:
    """Fewer channels by our prune_channels: from each layer as much as it alone bears."""
    checks.numbers("ratios", checks.instance("ratios", ratios, dict).values(), 0, 1)
    checks.instance("model", model, nn.Module)
    for name in ratios:
        checks.choice("ratios", name, dict(model.named_modules()))
    return pruning.prune_channels(model, torch.zeros(1, 3, 32, 32), ratios), ()


def torch_pruning_uniform(model: nn.Module, data: Data, ratios: dict[str, float]) -> Compressed:
    """Fewer channels by torch-pruning's own pruner, the same share of each layer, down to as many MACs as ours at most."""
    import torch_pruning

    goal = profiling.count_macs(channels_by_sensitivity(model, data, ratios)[0])
    example = torch.zeros(1, 3, 32, 32)
    classifier = [layer for layer in model.modules() if isinstance(layer, nn.Linear)][-1:]
    name = next(name for name, layer in model.named_modules() if layer is classifier[0])
    for share in (step / 40 for step in range(1, 40)):
        thinner = copy.deepcopy(model).requires_grad_(True)
        importance = torch_pruning.importance.GroupMagnitudeImportance(p=2)
        options = {"pruning_ratio": share, "ignored_layers": [thinner.get_submodule(name)]}
        torch_pruning.pruner.MagnitudePruner(thinner, example, importance=importance, **options).step()
        if profiling.count_macs(thinner) <= goal:
            return thinner, ()
    raise ValueError(f"ratios must leave as many MACs as torch-pruning can reach, got {goal:,} MACs of ours")


def low_rank_by_pictures(model: nn.Module, data: Data, ratios: dict[str, float]) -> Compressed:
    """Four times fewer parameters by our factorize, with an eye on pictures."""
    some = checks.instance("data", data, Data).train.take(slice(0, 300))
    return low_rank.factorize(model, budget=1 / SMALLER, count="parameters", round_to=8, pictures=some), ()


def tensorly_tucker(model: nn.Module, data: Data, ratios: dict[str, float]) -> Compressed:
    """Four times fewer parameters by tensorly's Tucker-2 decomposition (Kim 2016), the same share of ranks in each convolution."""
    model = copy.deepcopy(model)
    goal = profiling.count_parameters(model) / SMALLER
    convolutions = {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Conv2d) and layer.in_channels > 3
    }
    rest = profiling.count_parameters(model) - sum(layer.weight.numel() for layer in convolutions.values())

    def ranks(layer: nn.Conv2d, share: float) -> tuple[int, int]:
        return max(8, 8 * round(share * layer.out_channels / 8)), max(
            8, 8 * round(share * layer.in_channels / 8)
        )

    def parameters(share: float) -> int:
        total = rest
        for layer in convolutions.values():
            out, into = ranks(layer, share)
            total += (
                layer.in_channels * into + into * out * layer.weight[0, 0].numel() + out * layer.out_channels
            )
        return total

    share = max((step / 100 for step in range(1, 100) if parameters(step / 100) <= goal), default=None)
    if share is None:
        raise ValueError(
            f"model must get down to {goal:,.0f} parameters by its convolutions, got {rest:,} outside them"
        )
    for name, layer in convolutions.items():
        parent = model.get_submodule(name.rpartition(".")[0])
        setattr(parent, name.rpartition(".")[2], _tucker(layer, *ranks(layer, share)))
    return model, ()


def _tucker(layer: nn.Conv2d, out: int, into: int) -> nn.Sequential:
    """Return 1 x 1, k x k, 1 x 1 convolutions from the Tucker-2 decomposition of one convolution's weight."""
    import tensorly
    from tensorly.decomposition import partial_tucker

    tensorly.set_backend("pytorch")
    (core, (left, right)), _ = partial_tucker(
        layer.weight.detach(), rank=[out, into], modes=[0, 1], init="svd", n_iter_max=10
    )
    first = nn.Conv2d(layer.in_channels, into, 1, bias=False)
    middle = nn.Conv2d(into, out, layer.kernel_size, layer.stride, layer.padding, layer.dilation, bias=False)
    last = nn.Conv2d(out, layer.out_channels, 1, bias=layer.bias is not None)
    with torch.no_grad():
        first.weight.copy_(right.T[:, :, None, None])
        middle.weight.copy_(core)
        last.weight.copy_(left[:, :, None, None])
        if layer.bias is not None:
            last.bias.copy_(layer.bias)
    return nn.Sequential(first, middle, last)


TASKS: dict[str, dict[str, Callable[[nn.Module, Data, dict[str, float]], Compressed]]] = {
    "90% zeros": {"torch.nn.utils.prune": torch_prune, "helpers.pruning": gradual_pruner},
    "fewer channels": {"torch-pruning": torch_pruning_uniform, "helpers.pruning": channels_by_sensitivity},
    "low rank": {"tensorly (Tucker)": tensorly_tucker, "helpers.low_rank": low_rank_by_pictures},
}
