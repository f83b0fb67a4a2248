"""Core ML's operations, computed with PyTorch in single precision: they stand in for Apple's runtime.

Source: https://apple.github.io/coremltools/source/coremltools.converters.mil.mil.ops.defs.html (iOS 15, 16).
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves, tree_map

from helpers.deploy.writing import ExportError

CONSTANTS = ("const", "constexpr_")  # how the names of operations begin whose value stands in the file
Arguments = dict[str, Any]


class UnknownOperation(ExportError):
    """A package holds an operation that can be computed by Core ML only: on a Mac."""


class Program:
    """The main function of a package, callable with one picture: 1 x 3 x H x W, float32, to logits.

    Args:
        function: as coremltools' ``milproto.load`` reads it: typed operations with the weights in them.
        name: of the package, for messages.

    Raises:
        UnknownOperation: it holds what cannot be computed here.
    """

    def __init__(self, function: Any, name: str) -> None:
        self.name, self.inputs, self.output = name, function.inputs, function.outputs[0].name
        self.operations = [each for each in function.operations if not each.op_type.startswith(CONSTANTS)]
        unknown = {each.op_type for each in self.operations} - {*OPERATIONS}
        if unknown:
            raise UnknownOperation(
                f"{name} holds {', '.join(sorted(unknown))}, which cannot be computed outside Core ML"
            )
        made = {*self.inputs, *(out.name for each in self.operations for out in each.outputs)}
        taken = [variable for each in self.operations for variable in tree_leaves(each.inputs)]
        self.stored = {one.name: _stored(one) for one in taken if one.name not in made}

    def __call__(self, picture: Tensor) -> Tensor:
        """Compute the logits; ExportError if a shape is not the one that the file declares for it."""
        ((taken, declared),) = self.inputs.items()
        self._hold(picture, declared, "its input")
        values = self.stored | {taken: picture}
        for each in self.operations:
            given = tree_map(lambda variable: values[variable.name], each.inputs)
            results = tree_leaves(OPERATIONS[each.op_type](given))
            for variable, value in zip(each.outputs, results, strict=True):
                self._hold(value, variable, f"{each.op_type} {variable.name}")
                values[variable.name] = value
        return values[self.output]

    def _hold(self, value: Tensor, declared: Any, what: str) -> None:
        if tuple(value.shape) != tuple(declared.shape):
            shapes = f"{tuple(declared.shape)} for {what}, and gets {tuple(value.shape)}"
            raise ExportError(f"{self.name} declares the shape {shapes}")


# A constant of the file, unpacked: a tensor if it holds real numbers, else plain Python values.
def _stored(variable: Any) -> Any:
    value = np.asarray(variable.op.materialized_val_inference() if variable.val is None else variable.val)
    return torch.from_numpy(value.astype(np.float32)) if value.dtype.kind == "f" else value.tolist()


# -- what takes more than a line -----------------------------------------------------------------------------


def _ones(a: Arguments) -> list[int]:
    return [1] * (a["x"].ndim - 2)


# x with what a convolution or a pool pads it with, before and after each dimension of the picture.
def _padded(a: Arguments, value: float = 0.0) -> Tensor:
    kind, sizes = a.get("pad_type", "valid"), a["x"].shape[2:]
    pads = a["pad"] if kind == "custom" else [0] * 2 * len(sizes)
    if kind in ("same", "same_lower"):
        kernels = a["kernel_sizes"] if "kernel_sizes" in a else a["weight"].shape[2:]
        steps = zip(sizes, kernels, a.get("strides", _ones(a)), a.get("dilations", _ones(a)), strict=True)
        totals = [max(0, (math.ceil(n / s) - 1) * s + (k - 1) * d + 1 - n) for n, k, s, d in steps]
        pads = [part for n in totals for part in ((n // 2, n - n // 2)[:: 1 if kind == "same" else -1])]
    return _pad(a["x"], pads, value=value)


# By Core ML's order, the first dimension first; PyTorch has the last one first.
def _pad(x: Tensor, pads: Any, mode: str = "constant", value: float = 0.0) -> Tensor:
    pairs = [pads[i : i + 2] for i in range(0, len(pads), 2)][::-1]
    flat = [int(number) for pair in pairs for number in pair]
    return F.pad(x, flat, mode, value) if mode == "constant" else F.pad(x, flat[: 2 * (x.ndim - 2)], mode)


def _conv(a: Arguments) -> Tensor:
    convolve = getattr(F, f"conv{a['x'].ndim - 2}d")
    steps = a.get("strides", _ones(a)), 0, a.get("dilations", _ones(a)), a.get("groups", 1)
    return convolve(_padded(a), a["weight"], a.get("bias"), *steps)


def _conv_transpose(a: Arguments) -> Tensor:
    convolve = getattr(F, f"conv_transpose{a['x'].ndim - 2}d")
    steps = {"stride": a.get("strides", _ones(a)), "dilation": a.get("dilations", _ones(a))}
    whole = convolve(a["x"], a["weight"], a.get("bias"), groups=a.get("groups", 1), **steps)
    pads = a["pad"] if a.get("pad_type", "valid") == "custom" else [0] * 2 * len(_ones(a))
    sizes = a["output_shape"][2:] if "output_shape" in a else None
    for place, before in enumerate(pads[::2]):
        size = sizes[place] if sizes else whole.shape[2 + place] - before - pads[2 * place + 1]
        whole = whole.narrow(2 + place, before, size)
    return whole


def _max_pool(a: Arguments) -> Tensor:
    pool = getattr(F, f"max_pool{a['x'].ndim - 2}d")
    ceil = a.get("ceil_mode", False)
    return pool(_padded(a, -math.inf), a["kernel_sizes"], a.get("strides", _ones(a)), ceil_mode=ceil)


def _avg_pool(a: Arguments) -> Tensor:
    pool = getattr(F, f"avg_pool{a['x'].ndim - 2}d")
    settings = a["kernel_sizes"], a.get("strides", _ones(a)), 0, a.get("ceil_mode", False)
    mean = pool(_padded(a), *settings)
    if not a.get("exclude_padding_from_average", False):
        return mean
    return mean / pool(_padded(a | {"x": torch.ones_like(a["x"])}), *settings)


def _layer_norm(a: Arguments) -> Tensor:
    axes = sorted(axis % a["x"].ndim for axis in a.get("axes", range(a["x"].ndim)))
    last = list(range(-len(axes), 0))  # where PyTorch has the dimensions that it normalises
    x = a["x"].movedim(axes, last)
    return F.layer_norm(x, x.shape[last[0] :], a.get("gamma"), a.get("beta"), _number(a)).movedim(last, axes)


def _number(a: Arguments, name: str = "epsilon", default: float = 1e-5) -> float:
    return float(a.get(name, default))


def _matmul(a: Arguments) -> Tensor:
    x, y = (a[name].mT if a.get(f"transpose_{name}") else a[name] for name in ("x", "y"))
    return x @ y


# By NumPy's indexing, which knows negative steps; a begin or an end whose mask is set is left open.
def _slice(a: Arguments) -> Tensor:
    count = len(a["begin"])
    masks = (a.get(name, [False] * count) for name in ("begin_mask", "end_mask", "squeeze_mask"))
    sides = zip(a["begin"], a["end"], a.get("stride", [1] * count), *masks, strict=True)
    places = tuple(
        int(begin) if squeezed else slice(None if first else int(begin), None if last else int(end), step)
        for begin, end, step, first, last, squeezed in sides
    )
    return torch.from_numpy(np.array(torch.as_tensor(a["x"]).numpy()[places]))


def _gather(a: Arguments) -> Tensor:
    x, indices = torch.as_tensor(a["x"]), torch.as_tensor(a["indices"])
    return x[(slice(None),) * (a.get("axis", 0) % x.ndim) + (indices,)]


def _scatter(a: Arguments) -> Tensor:
    if a.get("mode", "add") not in ("add", "update"):
        raise UnknownOperation(f"scatter of mode {a['mode']} cannot be computed outside Core ML")
    data, indices = torch.as_tensor(a["data"]), torch.as_tensor(a["indices"])
    axis = a.get("axis", 0) % data.ndim
    indices = torch.where(indices < 0, indices + data.shape[axis], indices).reshape(-1)
    updates = torch.as_tensor(a["updates"]).reshape(*data.shape[:axis], -1, *data.shape[axis + 1 :])
    place = torch.index_add if a.get("mode", "add") == "add" else torch.index_copy
    return place(data, axis, indices, updates.to(data.dtype))


def _concat(a: Arguments) -> Tensor:
    values, axis = [torch.as_tensor(value) for value in a["values"]], a["axis"]
    if not a.get("interleave", False):
        return torch.cat(values, axis)
    axis %= values[0].ndim
    return torch.stack(values, axis + 1).flatten(axis, axis + 1)  # the first of each, then the second of each


def _resized(mode: str) -> Callable[[Arguments], Tensor]:
    def resize(a: Arguments) -> Tensor:
        factors = [a.get(f"scale_factor_{side}", 1) for side in ("height", "width")]
        size = [round(n * float(factor)) for n, factor in zip(a["x"].shape[2:], factors, strict=True)]
        corners = {} if mode == "nearest" else {"align_corners": a.get("align_corners", True)}
        return F.interpolate(a["x"], size, mode=mode, **corners)

    return resize


def _gelu(a: Arguments) -> Tensor:
    mode = a.get("mode", "EXACT")
    if mode == "SIGMOID_APPROXIMATION":
        return a["x"] * (1.702 * a["x"]).sigmoid()
    return F.gelu(a["x"], approximate="tanh" if mode == "TANH_APPROXIMATION" else "none")


def _elementwise(function: Callable, *names: str) -> Callable[[Arguments], Tensor]:
    return lambda a: function(*(torch.as_tensor(a[name]) for name in names))


def _reduced(function: Callable) -> Callable[[Arguments], Tensor]:
    def reduce(a: Arguments) -> Tensor:
        axes = a.get("axes", list(range(a["x"].ndim)))
        return function(a["x"], dim=axes, keepdim=a.get("keep_dims", False))

    return reduce


# -- all of them, by name ------------------------------------------------------------------------------------

_KINDS = {"bool": torch.bool, "fp16": torch.float32, "fp32": torch.float32}  # others: whole numbers
_UNARY = {
    torch.abs, torch.ceil, torch.cos, torch.erf, torch.exp, torch.floor, torch.logical_not, torch.relu,
    torch.round, torch.sigmoid, torch.sign, torch.sin, torch.sqrt, torch.square, torch.tanh,
}  # fmt: skip
_BINARY = {
    "add": torch.add, "sub": torch.sub, "mul": torch.mul, "real_div": torch.true_divide, "pow": torch.pow,
    "floor_div": torch.floor_divide, "mod": torch.remainder, "maximum": torch.maximum,
    "minimum": torch.minimum, "equal": torch.eq, "not_equal": torch.ne, "less": torch.lt,
    "less_equal": torch.le, "greater": torch.gt, "greater_equal": torch.ge,
    "logical_and": torch.logical_and, "logical_or": torch.logical_or,
}  # fmt: skip
_REDUCED = {
    "mean": torch.mean, "sum": torch.sum, "max": torch.amax, "min": torch.amin,
    "log_sum_exp": torch.logsumexp, "l2_norm": torch.linalg.vector_norm,
}  # fmt: skip

OPERATIONS: dict[str, Callable[[Arguments], Any]] = {
    **{function.__name__: _elementwise(function, "x") for function in _UNARY},
    **{name: _elementwise(function, "x", "y") for name, function in _BINARY.items()},
    **{f"reduce_{name}": _reduced(function) for name, function in _REDUCED.items()},
    "conv": _conv,
    "conv_transpose": _conv_transpose,
    "linear": lambda a: F.linear(a["x"], a["weight"], a.get("bias")),
    "matmul": _matmul,
    "einsum": lambda a: torch.einsum(a["equation"], *a["values"]),
    "batch_norm": lambda a: F.batch_norm(
        a["x"], a["mean"], a["variance"], a.get("gamma"), a.get("beta"), eps=_number(a)
    ),
    "layer_norm": _layer_norm,
    "instance_norm": lambda a: F.instance_norm(
        a["x"], weight=a.get("gamma"), bias=a.get("beta"), eps=_number(a)
    ),
    "max_pool": _max_pool,
    "avg_pool": _avg_pool,
    "relu6": lambda a: a["x"].clamp(0, 6),
    "clip": lambda a: a["x"].clamp(float(a["alpha"]), float(a["beta"])),
    "clamped_relu": lambda a: F.leaky_relu(a["x"], float(a["alpha"])).clamp(max=float(a["beta"])),
    "thresholded_relu": lambda a: torch.where(a["x"] >= float(a["alpha"]), a["x"], 0.0),
    "threshold": lambda a: a["x"].clamp(min=float(a["alpha"])),
    "leaky_relu": lambda a: F.leaky_relu(a["x"], float(a["alpha"])),
    "prelu": lambda a: F.prelu(a["x"], a["alpha"]),
    "elu": lambda a: F.elu(a["x"], float(a["alpha"])),
    "gelu": _gelu,
    "silu": lambda a: F.silu(a["x"]),
    "softplus": lambda a: F.softplus(a["x"]),
    "softmax": lambda a: a["x"].softmax(a.get("axis", -1)),
    "sigmoid_hard": lambda a: (float(a["alpha"]) * a["x"] + float(a["beta"])).clamp(0, 1),
    "linear_activation": lambda a: float(a["alpha"]) * a["x"] + float(a["beta"]),
    "log": lambda a: (a["x"] + _number(a, default=1e-45)).log(),
    "rsqrt": lambda a: (a["x"] + _number(a, default=1e-12)).rsqrt(),
    "inverse": lambda a: 1 / (a["x"] + _number(a, default=1e-4)),
    "concat": _concat,
    "stack": lambda a: torch.stack([torch.as_tensor(value) for value in a["values"]], a["axis"]),
    "split": lambda a: a["x"].split(
        a.get("split_sizes") or a["x"].shape[a["axis"]] // a["num_splits"], a["axis"]
    ),
    "pad": lambda a: _pad(a["x"], a["pad"], a.get("mode", "constant"), _number(a, "constant_val", 0)),
    "reshape": lambda a: a["x"].reshape([*map(int, a["shape"])]),
    "transpose": lambda a: a["x"].permute(a["perm"]),
    "expand_dims": lambda a: torch.from_numpy(np.expand_dims(torch.as_tensor(a["x"]), tuple(a["axes"]))),
    "squeeze": lambda a: a["x"].squeeze(a.get("axes", list(range(a["x"].ndim)))),
    "tile": lambda a: a["x"].repeat([*map(int, a["reps"])]),
    "slice_by_index": _slice,
    "gather": _gather,
    "scatter": _scatter,
    "select": lambda a: torch.where(torch.as_tensor(a["cond"]), a["a"], a["b"]),
    "identity": lambda a: a["x"],
    "crop": lambda a: _pad(a["x"], [-n for side in ("height", "width") for n in a[f"crop_{side}"]]),
    "pixel_shuffle": lambda a: F.pixel_shuffle(a["x"], a["upscale_factor"]),
    "upsample_nearest_neighbor": _resized("nearest"),
    "upsample_bilinear": _resized("bilinear"),
    "cast": lambda a: torch.as_tensor(a["x"]).to(_KINDS.get(a["dtype"], torch.int64)),
}
