"""What depends on a channel: torch-pruning's graph, bounded; and the proof that nothing else does."""

import copy
import warnings
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from helpers.evaluation import evaluating
from helpers.networks import outputs, refusing, widen
from helpers.runs import hooked

# torch-pruning's operations behind which channels of one layer can meet
RESHAPED = ("_SplitOp", "_SliceOp", "_UnbindOp", "_ReshapeOp")
STEPS = 300_000  # while what depends on one layer's channels is looked for; DenseNet-121 needs 90,102


class _Search:
    """What a search through torch-pruning's graph has passed; it ends one that would not end."""

    def __init__(self) -> None:
        self.steps = 0

    def passes(self, steps: int = 1) -> None:
        self.steps += steps
        if self.steps > STEPS:
            raise RecursionError(f"what depends on its channels was not found in {STEPS} steps")

    def mapped(self, mapping: Callable, places: list) -> list:
        self.passes(len(places) * (1 if mapping.reverse else getattr(mapping, "_stride", 1)))
        return mapping(places)


class _Mappings(list):
    def __init__(self, mappings: list, search: _Search) -> None:
        super().__init__(mappings)
        self.search = search

    def __iter__(self) -> Iterator:
        self.search.passes()
        return (one and partial(self.search.mapped, one) for one in super().__iter__())


def traced(model: nn.Module, example: Tensor) -> tuple[Any, Tensor, bool]:
    """Return torch-pruning's graph of a copy; random pictures; whether auxiliary outputs are in the graph."""
    import torch_pruning

    network = widen(copy.deepcopy(model)).requires_grad_(True)  # the graph is read off autograd's
    for mine, theirs in zip(network.parameters(), model.parameters(), strict=True):
        mine.grad = None if theirs.grad is None else theirs.grad.to(mine.dtype)
    like, generator = next(network.parameters()), torch.Generator().manual_seed(0)
    pictures = torch.randn(2, *example.shape[1:], generator=generator).to(like)
    with evaluating(network), torch.enable_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch-pruning's, of what it does not know: that is found out below
        with refusing(f"example must be an input that the model takes, got {tuple(example.shape)}"):
            outputs(network, example.to(like), training=False)
        training, idle = True, _idle(network, pictures)
        try:
            outputs(network, pictures, training=True)
        except Exception as error:  # in train mode it takes larger pictures only, as Inception does
            if idle:
                part = f"{idle[0]}, which runs only then"
                raise ValueError(
                    f"example must be one for train mode, too, because of {part} ({error})"
                ) from error
            training = False
        with refusing(
            "model must be a network whose channels can go: torch-pruning cannot follow them; "
            "what is left is to split its layers (factorize) or to set weights to zero (prune_once)"
        ):
            run = partial(outputs, training=training)
            graph = torch_pruning.DependencyGraph().build_dependency(network, pictures, run, verbose=False)
    graph.search = _Search()
    for node in graph.module2node.values():
        for dependency in node.dependencies:
            dependency.index_mapping = _Mappings(dependency.index_mapping, graph.search)
    return graph, pictures, training


def _idle(network: nn.Module, pictures: Tensor) -> list[str]:
    modules, called = dict(network.named_modules()), set()
    with hooked(modules, lambda name, *rest: called.add(name)):
        outputs(network, pictures, training=False)
    return [n for n, one in modules.items() if n not in called and [*one.parameters(recurse=False)]]


def _group(graph: Any, layer: nn.Module, channels: Iterable[int]) -> Any:
    graph.search.steps = 0
    handler = graph.get_pruner_of_module(layer).prune_out_channels
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return graph.get_pruning_group(layer, handler, list(channels))


def _parts(graph: Any, group: Any, ends: bool) -> Iterator[tuple[nn.Module, int, Tensor]]:
    """Yield layers that make a group's channels (at their ends: that read them), dimension, places."""
    for dep, places in group:
        layer = dep.target.module
        reads = not graph.is_out_channel_pruning_fn(dep.handler)
        if reads == ends and isinstance(layer, (nn.modules.conv._ConvNd, nn.Linear)):
            dimension = int(reads != getattr(layer, "transposed", False))
            yield layer, dimension, torch.tensor(places, device=layer.weight.device)


def without(model: nn.Module, example: Tensor, plan: dict[str, list[int]]) -> tuple[nn.Module, list[str]]:
    """Return a copy without the planned channels, or the layers on whose channels more depends than is known.

    What reads a channel is first set to zero. No output may then depend on it any more, by autograd's word,
    whatever it holds; and the smaller network must answer as this one.
    """
    try:
        return _attempt(model, example, plan)
    except Exception as error:  # torch's and torch-pruning's, too
        if not plan:
            raise ValueError(f"model must answer the same twice ({error})") from error
        parts = [{name: plan[name] for name in [*plan][: count + 1]} for count in range(len(plan) - 1)]
        first = bisect_left(parts, True, key=lambda part: _fails(model, example, part))
        raise ValueError(f"skip must name {[*plan][first]}, whose channels cannot go ({error})") from error


def _fails(model: nn.Module, example: Tensor, plan: dict[str, list[int]]) -> bool:
    try:
        _attempt(model, example, plan)
    except Exception:
        return True
    return False


@torch.enable_grad()
def _attempt(model: nn.Module, example: Tensor, plan: dict[str, list[int]]) -> tuple[nn.Module, list[str]]:
    graph, pictures, training = traced(model, example)
    network = graph.model
    layers = {name: network.get_submodule(name) for name in plan}
    groups = {name: _group(graph, layers[name], gone) for name, gone in plan.items()}
    makers = {name: [*_parts(graph, group, ends=False)] for name, group in groups.items()}
    generator = torch.Generator().manual_seed(0)
    blank = {name: one for name, one in network.named_parameters() if not one.any()}
    for one in blank.values():  # as heads and last scales often begin, behind which nothing would be seen
        one.data.copy_(torch.randn(one.shape, generator=generator))
    for layer, dimension, places in (part for parts in makers.values() for part in parts):
        layer.weight.data.index_fill_(dimension, places, 0.1)  # what is dead would hide behind a ReLU
        if layer.bias is not None:
            layer.bias.data.index_fill_(0, places, 1)
    for group in groups.values():
        for layer, dimension, places in _parts(graph, group, ends=True):
            layer.weight.data.index_fill_(dimension, places, 0)
    found, before = (outputs(network, pictures, training=mode) for mode in (training, False))
    leaking = [name for name, slopes in _slopes(found, makers).items() if any(one.any() for one in slopes)]
    if leaking:
        return network, leaking
    for name, gone in plan.items():
        _group(graph, layers[name], gone).prune()
    if len([*network.parameters()]) != len([*model.parameters()]):
        raise ValueError("two layers share its weights")
    with torch.no_grad():
        shapes = [one.shape for one in outputs(network, pictures, training=training)]
        after = outputs(network, pictures, training=False)
    if shapes != [one.shape for one in found] or not all(map(_close, after, before)):
        raise ValueError("the rest of the network takes other channels for them")
    for name in blank:
        network.get_parameter(name).data.zero_()
    return network, []


def _slopes(found: list[Tensor], makers: dict[str, list[tuple]]) -> dict[str, list[Tensor]]:
    """Return what a mixture of all outputs changes by with the weights that make each group's channels."""
    generator = torch.Generator().manual_seed(0)
    mixture = sum((one * torch.randn(one.shape, generator=generator).to(one)).sum() for one in found)
    weights = list({layer: layer.weight for parts in makers.values() for layer, *_ in parts}.values())
    if not weights:
        return {}
    slopes = torch.autograd.grad(mixture, weights, allow_unused=True, materialize_grads=True)
    of = dict(zip(map(id, weights), slopes, strict=True))
    return {
        name: [of[id(layer.weight)].index_select(dimension, places) for layer, dimension, places in parts]
        for name, parts in makers.items()
    }


def _close(after: Tensor, before: Tensor) -> bool:
    across = (before - before.mean(0)).abs().max()  # what pictures change is small in some networks
    same = after.shape == before.shape
    return same and bool((after - before).abs().max() <= 0.01 * across + 1e-5 * before.abs().max())


def _divided(layer: nn.Module) -> bool:
    if isinstance(layer, nn.GroupNorm):
        return layer.num_groups > 1
    groups = getattr(layer, "groups", 1)
    return groups > 1 and not groups == layer.in_channels == layer.out_channels  # a depthwise one has as many


class Group(NamedTuple):
    """Layers whose outputs are tied to each other: the first one, its channels, and the share that goes."""

    name: str
    scores: Tensor
    share: float
    sets: list[list[int]]  # of channels that go together, as the two that a gate multiplies; mostly one each


def _sets(graph: Any, group: Any, layer: nn.Module) -> list[list[int]]:
    """Return which of a layer's own channels go together."""

    def gone_with(channels: Iterable[int]) -> set[int]:
        own = (
            places
            for dep, places in _group(graph, layer, channels)
            if dep.target.module is layer and graph.is_out_channel_pruning_fn(dep.handler)
        )
        return set().union(*own)

    count = len(layer.weight)
    alone = [[channel] for channel in range(count)]
    if not any(type(dep.target.module).__name__ in RESHAPED for dep, _ in group):
        return alone
    # Two channels differ in a bit of their numbers: of all whose bit is 0, one would take the other along.
    bits = ({one for one in range(count) if not one >> bit & 1} for bit in range((count - 1).bit_length()))
    if all(gone_with(sorted(half)) == half for half in bits):
        return alone
    return [list(one) for one in dict.fromkeys(tuple(sorted(gone_with(one))) for one in alone)]


def groups_of(
    graph: Any, shares: dict[str, float], score: Callable
) -> tuple[list[Group], dict[str, list[str]], list[str]]:
    """Look up which layers' outputs are tied to each other.

    Returns:
        The groups that lose channels. {first layer: all of them that lose channels}. Layers to leave alone,
        since torch-pruning does not find what is tied to them.
    """
    names = {layer: name for name, layer in graph.model.named_modules()}
    groups, ties, alone, seen = [], {}, [], set()
    for layer in list(graph.module2node):
        if layer in seen or not isinstance(layer, (nn.Conv2d, nn.Linear)):
            continue
        try:
            group = _group(graph, layer, range(len(layer.weight)))
            made = [dep.target.module for dep, _ in group if graph.is_out_channel_pruning_fn(dep.handler)]
            tied = [names[one] for one in made if names.get(one) in shares]
            share = min((shares[name] for name in tied), default=0.0)
            wanted = share > 0 and not any(_divided(dep.target.module) for dep, _ in group)
            scores = score(group) if wanted else None
            sets = _sets(graph, group, layer) if wanted else []
        except Exception:  # whatever torch-pruning raises on what it was not made for
            made, wanted = [layer], False
            alone += [names[layer]] if shares.get(names[layer]) else []
        seen.update(made)
        if wanted and scores is None:
            raise ValueError(
                'model must be a network whose channels can go: importance "batchnorm" needs a normalisation '
                f"behind each of its layers, also {names[layer]}"
            )
        if wanted:
            scores = scores.detach().clone()
            for together in sets:
                scores[together] = scores[together].mean()
            groups.append(Group(names[layer], scores, share, sets))
            ties[names[layer]] = tied
    return groups, ties, alone
