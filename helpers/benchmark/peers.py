"""What well-known libraries make of the same task: changes for recipes, so that all start and train alike."""

import copy

import torch
from torch import nn

from helpers import profiling, pruning, quantization
from helpers.benchmark.changes import Change, Lab, configured


@configured
def as_few_macs(model: nn.Module, lab: Lab, ours: Change) -> nn.Module:
    """torch-pruning's own pruner: the same share of each layer's channels, down to the MACs of ``ours``."""
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


@configured
def tucker(model: nn.Module, lab: Lab, times: float) -> nn.Module:
    """tensorly's Tucker-2 (Kim 2016): ``times`` fewer parameters, the same share of ranks in each layer."""
    convolutions = {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d)}
    layers = {name: layer for name, layer in convolutions.items() if layer.in_channels > 3}
    count = profiling.count_parameters
    total = count(model)
    rest = total - sum(map(count, layers.values()))
    for share in (step / 100 for step in range(99, 0, -1)):
        with torch.device("meta"):  # shapes alone
            parts = {name: _parts(layer, share) for name, layer in layers.items()}
        if rest + sum(map(count, parts.values())) <= total / times:
            break
    else:
        goal = f"get down to {total / times:,.0f} parameters by its convolutions"
        raise ValueError(f"model must {goal}, got {rest:,} beside them")
    thinner = copy.deepcopy(model)
    for name, layer in layers.items():
        thinner.set_submodule(name, _tucker(layer, parts[name].to_empty(device="cpu")))
    return thinner


def _parts(layer: nn.Conv2d, share: float) -> nn.Sequential:
    """Return a 1 x 1, a k x k and a 1 x 1 convolution, whose ranks are this share of the full ones."""
    out, into = (max(8, 8 * round(share * n / 8)) for n in (layer.out_channels, layer.in_channels))
    return nn.Sequential(
        nn.Conv2d(layer.in_channels, into, 1, bias=False),
        nn.Conv2d(into, out, layer.kernel_size, layer.stride, layer.padding, layer.dilation, bias=False),
        nn.Conv2d(out, layer.out_channels, 1, bias=layer.bias is not None),
    )


@torch.no_grad()
def _tucker(layer: nn.Conv2d, parts: nn.Sequential) -> nn.Sequential:
    """Fill three convolutions with the Tucker-2 decomposition of one convolution's weight."""
    import tensorly
    from tensorly.decomposition import partial_tucker

    tensorly.set_backend("pytorch")
    ranks = [parts[1].out_channels, parts[1].in_channels]
    (core, (left, right)), _ = partial_tucker(
        layer.weight, rank=ranks, modes=[0, 1], init="svd", n_iter_max=10
    )
    for part, weight in zip(parts, (right.T[:, :, None, None], core, left[:, :, None, None]), strict=True):
        part.weight.copy_(weight)
    if layer.bias is not None:
        parts[2].bias.copy_(layer.bias)
    return parts


@torch.no_grad()
def on_grid(model: nn.Module) -> float:
    """Return the share of non-zero Conv2d and Linear weights that lie on their channel's 8-bit grid."""
    on = total = 0
    for weight in pruning.prunable(model).values():
        integers, scale = quantization.symmetric_grid(weight)
        alive = weight != 0
        on += int((((weight - integers * scale).abs() < 1e-3 * scale) & alive).sum())
        total += int(alive.sum())
    return on / max(1, total)
