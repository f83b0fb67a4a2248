"""Networks of any make: their logits and outputs, whether their weights are plain, which of them can go."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils._pytree import tree_leaves

from helpers.types import Names, Network, checked, shown

SCRIPTED = "is TorchScript, whose layers cannot be seen: give the module that it was made of"


def logits_of(output: object) -> Tensor:
    """Return the logits among what a network puts out.

    A tensor is them; of a tuple (auxiliary outputs, in train mode) it is the first part; of a dict
    "logits" or "out".
    """
    if isinstance(output, Mapping):
        output = output.get("logits", output.get("out"))
    if isinstance(output, (tuple, list)) and output:
        output = output[0]
    if not isinstance(output, Tensor):
        raise ValueError(
            "model must map pictures to logits: a tensor, a tuple that begins with it, or a dict that has it "
            f'as "logits" or "out"; got {shown(output)}'
        )
    return output


def known(argument: str, names: Iterable[str], layers: Iterable[str]) -> None:
    """Refuse names that are not among ``layers``."""
    for name in names:
        if name not in layers:
            raise ValueError(f"{argument} must be one of {', '.join(map(repr, layers))}; got {name!r}")


@checked
def check_counted(model: nn.Module) -> None:
    """Refuse a network with quantized layers, whose weights PyTorch does not show as they are stored."""
    for name, layer in model.named_modules():
        if "packed_params" in " ".join(vars(layer)) or any(
            hasattr(one, "qdata") for one in layer.parameters(recurse=False)
        ):
            raise ValueError(f"model must have plain weights to be counted, but layer {name!r} is quantized")


@checked
def check_plain(model: nn.Module) -> None:
    """Refuse a network in which some ``layer.weight`` is not the parameter that holds the weights."""
    for name, layer in model.named_modules():
        if why := _not_plain(layer):
            raise ValueError(f"model must have plain weights, but layer {name!r} {why}")


def _not_plain(layer: nn.Module) -> str:
    if isinstance(layer, torch.jit.ScriptModule):
        return SCRIPTED
    parameters = layer._parameters
    if parametrize.is_parametrized(layer):
        own = next(iter(layer.parametrizations))
        return f"is parametrized: torch.nn.utils.parametrize.remove_parametrizations(layer, {own!r}) first"
    if "weight_g" in parameters:
        return "has weight normalisation: torch.nn.utils.remove_weight_norm(layer) first"
    for own in (name.removesuffix("_orig") for name in parameters if name.endswith("_orig")):
        if f"{own}_mask" in layer._buffers:
            return f"is masked: torch.nn.utils.prune.remove(layer, {own!r}) first"
        return f"has spectral normalisation: torch.nn.utils.remove_spectral_norm(layer, {own!r}) first"
    kinds = {type(one).__name__ for one in parameters.values() if one is not None} - {"Parameter"}
    if kinds or (type(layer).__module__.startswith("torch.ao.nn") and ".quantized" in type(layer).__module__):
        return f"is {', '.join(kinds) or 'quantized'}: prune, factorize and round before quantizing"
    if isinstance(layer, (nn.Conv2d, nn.Linear)) and "weight" not in parameters:
        return "has a weight that is no parameter"
    return ""


@checked
def prunable(model: Network, skip: Names = ()) -> dict[str, nn.Parameter]:
    """Return the weights of every Conv2d and Linear by layer name, in order; no biases, no normalisation.

    A weight that layers share is there once, and not at all if one of them is in ``skip``.
    """
    check_plain(model)
    kinds = (nn.Conv2d, nn.Linear)
    layers = {name: layer.weight for name, layer in model.named_modules() if isinstance(layer, kinds)}
    if not layers:
        raise ValueError("model must have a Conv2d or Linear layer, since no others are pruned; got none")
    known("skip", skip, layers)
    owners = {id(weight): name for name, weight in reversed(layers.items())}
    owners |= {id(layers[name]): None for name in skip}
    return {name: weight for name, weight in layers.items() if owners[id(weight)] == name}


@checked
def outputs(model: Network, pictures: Tensor, *, training: bool) -> list[Tensor]:
    """Run ``model`` once and return every tensor of real numbers that it puts out.

    With ``training`` whatever has parts is in train mode, so that auxiliary outputs are there; single layers
    are in eval mode either way: no statistics move, no Dropout drops. Afterwards, all modes and the
    random state are what they were.
    """
    devices = [pictures.device] if pictures.is_cuda else []
    with modes_kept(model), torch.random.fork_rng(devices):
        for module in model.modules():
            module.training = training and next(module.children(), None) is not None
        leaves = tree_leaves(model(pictures))
    found = [one for one in leaves if isinstance(one, Tensor) and one.is_floating_point()]
    if not found:
        raise ValueError("model must put out tensors, alone or in tuples, lists and dicts; got none")
    return found


@contextmanager
def modes_kept(model: nn.Module) -> Iterator[None]:
    """Give every module, after the block, the mode that it had before: train or eval."""
    modes = {module: module.training for module in model.modules()}
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@checked
@contextmanager
def refusing(sentence: str) -> Iterator[None]:
    """Turn what libraries raise on what they were not made for into a ValueError that says ``sentence``."""
    try:
        yield
    except Exception as error:
        if "view size is not compatible" in str(error):
            sentence = "model must call .reshape where it calls .view: channels lie last in memory here"
        raise ValueError(f"{sentence} ({error})") from error


@checked
def fixed(model: Network) -> list[nn.Module]:
    """Return the parts that are in eval mode and whose parameters, at least one, are all frozen."""
    return [
        module
        for module in model.modules()
        if not module.training and {parameter.requires_grad for parameter in module.parameters()} == {False}
    ]


@checked
def widen(model: nn.Module) -> nn.Module:
    """Turn half-precision numbers into float32, in place; others stay."""
    for one in (*model.parameters(), *model.buffers()):
        if one.is_floating_point() and one.element_size() < 4:
            one.data = one.data.float()
    return model


@checked
def narrow(model: nn.Module, like: nn.Module) -> nn.Module:
    """Give each parameter and buffer the type it has in ``like``, in place."""
    pairs = zip((*model.parameters(), *model.buffers()), (*like.parameters(), *like.buffers()), strict=True)
    for mine, theirs in pairs:
        mine.data = mine.data.to(theirs.dtype)
    return model
