"""What runs in a network: each module's call, what it put out and what it computed; and the input for it."""

import copy
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from helpers.networks import SCRIPTED, outputs, refusing
from helpers.types import Network, Shape, by_name, checked

PICTURE = (1, 3, 32, 32)


class Call(NamedTuple):
    """One run of a module: its name, itself, a call on the same input, what it put out, what is its own."""

    name: str
    layer: nn.Module
    run: partial
    output_shape: tuple[int, ...]
    macs: int  # without those of its parts
    own: list[Tensor]  # parameters and buffers, its own and of parts that do not run by themselves
    parts: int  # how many of the calls before are of its parts


@checked
def calls(model: Network, input_shape: Shape = PICTURE) -> list[Call]:
    """Return the runs of modules of a copy of ``model`` that have no parts, or something of their own."""
    if isinstance(model, torch.jit.ScriptModule):
        raise ValueError(f"model must be plain PyTorch, but it {SCRIPTED}")
    network, found, starts = laid_out(model), [], []
    modules = dict(network.named_modules())

    def enter(name: str, layer: nn.Module, inputs: tuple, named: dict) -> None:
        starts.append((len(found), counter.get_total_flops()))

    def leave(name: str, layer: nn.Module, inputs: tuple, named: dict, output: object) -> None:
        first, before = starts.pop()
        macs = (counter.get_total_flops() - before) // 2 - sum(call.macs for call in found[first:])
        shape = next((tuple(one.shape) for one in tree_leaves(output) if isinstance(one, Tensor)), ())
        if next(layer.children(), None) is None:
            inputs = copy.deepcopy(inputs)  # which the next layer may overwrite
        run = partial(layer, *inputs, **named)
        found.append(Call(name, layer, run, shape, macs, [], len(found) - first))

    with torch.no_grad(), counted(network) as counter, hooked(modules, leave, enter):
        forward(network, example_of(model, input_shape))
    first_runs = {call.name: call for call in reversed(found)}
    for name, one in (*network.named_parameters(), *network.named_buffers()):
        while name not in first_runs:  # up to its layer, or to the module that reads it without calling that
            name = name.rpartition(".")[0]
        first_runs[name].own.append(one)
    stays = [bool(call.macs or call.own or next(call.layer.children(), None) is None) for call in found]
    return [
        call._replace(parts=sum(stays[place - call.parts : place]))
        for place, call in enumerate(found)
        if stays[place]
    ]


@checked
def hooked(layers: by_name(nn.Module), hook: Callable, before: Callable | None = None) -> ExitStack:
    """Return a context that calls ``hook(name, layer, inputs, named, output)`` after each run of a layer.

    And ``before(name, layer, inputs, named)`` before it, if that is given.
    """
    hooks = ExitStack()
    for name, layer in layers.items():
        if before is not None:
            hooks.enter_context(layer.register_forward_pre_hook(partial(before, name), with_kwargs=True))
        hooks.enter_context(layer.register_forward_hook(partial(hook, name), with_kwargs=True))
    return hooks


def classifier(model: nn.Module, pictures: Tensor) -> str | None:
    """Return the name of the Linear that runs last, whose outputs are the classes; None: none runs."""
    layers = {name: part for name, part in model.named_modules() if isinstance(part, nn.Linear)}
    ran, like = [None], next(model.parameters(), pictures)
    with (
        hooked(layers, lambda name, *rest: ran.append(name)),
        refusing(f"example must be an input that the model takes, got {tuple(pictures.shape)}"),
    ):
        outputs(model, pictures.to(like), training=False)
    return ran[-1]


@contextmanager
def plain_attention() -> Iterator[None]:
    """Compute attention in plain steps for the block: the fused one is a single, unknown operation."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


@contextmanager
def counted(model: nn.Module) -> Iterator[FlopCounterMode]:
    """Count FLOPs; attention and LSTMs as their matrix products: those of fused kernels are not counted."""
    with ExitStack() as plainly:
        if any(isinstance(layer, nn.LSTM) for layer in model.modules()):
            plainly.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")  # flags() warns of what it sets
            plainly.enter_context(torch.backends.mkldnn.flags(enabled=False))
            plainly.enter_context(torch.backends.cudnn.flags(enabled=False))
        plainly.enter_context(plain_attention())
        plainly.enter_context(sdpa_kernel(SDPBackend.MATH))
        yield plainly.enter_context(FlopCounterMode(display=False))


def laid_out(model: nn.Module) -> nn.Module:
    """Return a copy in eval mode, channels last: networks must not differ in time by their weights' order."""
    return channels_last(copy.deepcopy(model).eval())


def channels_last(model: nn.Module) -> nn.Module:
    """Lay out the weights of ``model`` in place, channels last, unless 3-D convolutions forbid it."""
    if any(each.ndim == 5 for each in (*model.parameters(), *model.buffers())):
        return model
    return model.to(memory_format=torch.channels_last)


@checked
def example_of(model: nn.Module, shape: Shape) -> Tensor:
    """Return random numbers for ``model``, on its device and of its type, always the same."""
    if not shape or math.prod(shape) > 2**31:
        raise ValueError(f"input_shape must be the sizes of a tensor of 1 to 2^31 numbers, got {shape}")
    first = next((one for one in model.parameters() if one.is_floating_point()), torch.empty(0))
    example = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(first.device, first.dtype)
    return example.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else example


def forward(model: nn.Module, example: Tensor) -> Tensor:
    """Run ``model``, or say that it does not take an input of this shape."""
    with refusing(f"input_shape must be one that the model takes, got {tuple(example.shape)}"):
        return model(example)
