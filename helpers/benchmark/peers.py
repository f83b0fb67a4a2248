"""What well-known libraries make of the same task: changes for recipes, so that all start and train alike."""

from __future__ import annotations

import copy

import torch
from torch import nn

from helpers import profiling, pruning, quantization
from helpers.benchmark.changes import Change, Lab


def as_few_macs(ours: Change) -> Change:
    """torch-pruning's own pruner: the same share of each layer's channels, down to the MACs of ``ours``."""

    def change(model: nn.Module, lab: Lab) -> nn.Module:
        import torch_pruning

        goal = profiling.count_macs(ours(model, lab))
        for share in (step / 40 for step in range(1, 40)):
            thinner = copy.deepcopy(model).requires_grad_(True)
            classifier = [layer for layer in thinner.modules() if isinstance(layer, nn.Linear)][-1]
            torch_pruning.pruner.MagnitudePruner(
                thinner,
                torch.zeros(1, 3, 32, 32),
                importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
                pruning_ratio=share,
                ignored_layers=[classifier],
                in_channel_groups={},  # its defaults are shared between calls
                out_channel_groups={},
            ).step()
            if profiling.count_macs(thinner) <= goal:
                return thinner
        raise ValueError(f"ours must leave as many MACs as torch-pruning can reach, got {goal:,}")

    return change


def tucker(times: float) -> Change:
    """tensorly's Tucker-2 (Kim 2016): ``times`` fewer parameters, the same share of ranks in each layer."""

    def change(model: nn.Module, lab: Lab) -> nn.Module:
        model = copy.deepcopy(model)
        layers = {
            name: layer
            for name, layer in model.named_modules()
            if isinstance(layer, nn.Conv2d) and layer.in_channels > 3
        }
        goal = profiling.count_parameters(model) / times
        rest = profiling.count_parameters(model) - sum(layer.weight.numel() for layer in layers.values())

        def ranks(layer: nn.Conv2d, share: float) -> tuple[int, int]:
            return max(8, 8 * round(share * layer.out_channels / 8)), max(
                8, 8 * round(share * layer.in_channels / 8)
            )

        def parameters(share: float) -> int:
            total = rest
            for layer in layers.values():
                out, into = ranks(layer, share)
                total += (
                    layer.in_channels * into
                    + into * out * layer.weight[0, 0].numel()
                    + out * layer.out_channels
                )
            return total

        fitting = [step / 100 for step in range(1, 100) if parameters(step / 100) <= goal]
        if not fitting:
            raise ValueError(
                f"model must get down to {goal:,.0f} parameters by its convolutions, got {rest:,} beside them"
            )
        for name, layer in layers.items():
            model.set_submodule(name, _tucker(layer, *ranks(layer, fitting[-1])))
        return model

    return change


def _tucker(layer: nn.Conv2d, out: int, into: int) -> nn.Sequential:
    """Return 1 x 1, k x k, 1 x 1 convolutions from the Tucker-2 decomposition of one convolution's weight."""
    import tensorly
    from tensorly.decomposition import partial_tucker

    tensorly.set_backend("pytorch")
    (core, (left, right)), _ = partial_tucker(
        layer.weight.detach(), rank=[out, into], modes=[0, 1], init="svd", n_iter_max=10
    )
    parts = nn.Sequential(
        nn.Conv2d(layer.in_channels, into, 1, bias=False),
        nn.Conv2d(into, out, layer.kernel_size, layer.stride, layer.padding, layer.dilation, bias=False),
        nn.Conv2d(out, layer.out_channels, 1, bias=layer.bias is not None),
    )
    with torch.no_grad():
        for part, weight in zip(
            parts, (right.T[:, :, None, None], core, left[:, :, None, None]), strict=True
        ):
            part.weight.copy_(weight)
        if layer.bias is not None:
            parts[2].bias.copy_(layer.bias)
    return parts


def on_grid(model: nn.Module, bits: int = 8) -> float:
    """Return the share of non-zero Conv2d and Linear weights that lie on their channel's grid."""
    on = total = 0
    for weight in pruning.prunable(model).values():
        weight = weight.detach()
        integers, scale = quantization.symmetric_grid(weight, bits)
        alive = weight != 0
        on += int((((weight - integers * scale).abs() < 1e-3 * scale) & alive).sum())
        total += int(alive.sum())
    return on / max(1, total)
