"""Convolutions of small maps as matrix products: several times as fast on processors with tile units (Intel AMX).

Such a unit multiplies 16 rows at a time, and PyTorch's CPU library (oneDNN) gives it the pixels of one row of a map. VGG-19's last
eight layers see maps of 4 x 4 and 2 x 2 pixels, so most of every tile stays empty. Written as one product over the pixels of all
pictures (im2col; Chellapilla 2006, section 2), every tile is full. Same outputs, up to the order in which they are added. (In bfloat16 the
gradient of the pictures is a little coarser: it is a sum over the kernel's pixels, of numbers that are rounded first.)
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from helpers import checks

WIDEST = 4  # pixels in a row of the output; at 8 the library's own convolution is faster


def convolve(
    images: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
) -> Tensor:
    """Convolve as ``torch.nn.functional.conv2d`` does (one group, no dilation), by one matrix product.

    Args:
        images: B x C x H x W.
        weight: O x C x h x w, of the same type.
        bias: one for each of the O outputs, or None.
        stride: down and across.
        padding: zeros above and below, left and right.

    Returns:
        B x O x H' x W', channels last.

    Raises:
        ValueError: the shapes do not fit each other.
    """
    for name, tensor in (("images", images), ("weight", weight)):
        if checks.instance(name, tensor, Tensor).ndim != 4:
            raise ValueError(f"{name} must have four dimensions, got shape {tuple(tensor.shape)}")
    for name, pair, low in (("stride", stride, 1), ("padding", padding, 0)):
        if len(checks.instance(name, pair, tuple)) != 2:
            raise ValueError(f"{name} must be two whole numbers, down and across, got {pair!r}")
        for number in pair:
            checks.integer(name, number, low)
    (count, channels, *size), (outputs, inputs, *kernel) = images.shape, weight.shape
    if bias is not None and checks.instance("bias", bias, Tensor).shape != (outputs,):
        raise ValueError(
            f"bias must have {outputs} numbers, one for each output, got shape {tuple(bias.shape)}"
        )
    rows, columns = ((size[i] + 2 * padding[i] - kernel[i]) // stride[i] + 1 for i in (0, 1))
    if inputs != channels:
        raise ValueError(
            f"weight must have {channels} input channels, as images have, got shape {tuple(weight.shape)}"
        )
    if min(rows, columns, *kernel) < 1:
        sizes = f"{' x '.join(map(str, kernel))} on {' x '.join(map(str, size))} pixels, padding {padding}"
        raise ValueError(
            f"images must be at least as large, with their padding, as the weight's kernel, got {sizes}"
        )
    padded = F.pad(images.permute(0, 2, 3, 1), (0, 0, padding[1], padding[1], padding[0], padding[0]))
    down, across = stride
    seen = [  # what the kernel's pixel (y, x) meets, at every place where the kernel is laid
        padded[:, y : y + rows * down : down, x : x + columns * across : across]
        for y in range(kernel[0])
        for x in range(kernel[1])
    ]
    patches = torch.cat(seen, dim=-1).reshape(-1, channels * kernel[0] * kernel[1])
    product = F.linear(patches, weight.permute(0, 2, 3, 1).reshape(outputs, -1), bias)
    return product.view(count, rows, columns, outputs).permute(0, 3, 1, 2)


class SmallMaps(TorchFunctionMode):
    """For the block: where autocast computes in bfloat16, convolutions to maps of at most ``WIDEST`` pixels a row are products."""

    def __torch_function__(
        self, function: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        """Take a convolution over where its map is small; let everything else through."""
        if function is torch.conv2d and not kwargs and _autocasts(args[0]) and _small(*args):
            images, weight, bias, *place = args[:5]
            return convolve(
                images.bfloat16(), weight.bfloat16(), None if bias is None else bias.bfloat16(), *place
            )
        return function(*args, **(kwargs or {}))


def _autocasts(images: Tensor) -> bool:
    """Whether autocast would compute with these in bfloat16."""
    enabled = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
    return enabled and images.dtype in (torch.float32, torch.bfloat16)


def _small(
    images: Tensor,
    weight: Tensor,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> bool:
    """Whether ``SmallMaps`` takes this convolution: one as ``nn.Conv2d`` calls it, with pairs of numbers."""
    pairs = all(isinstance(pair, tuple) and len(pair) == 2 for pair in (stride, padding))
    if not pairs or groups != 1 or images.ndim != 4 or dilation not in (1, (1, 1)):
        return False
    return (images.shape[3] + 2 * padding[1] - weight.shape[3]) // stride[1] < WIDEST


@functools.cache
def has_tiles(device_type: str = "cpu") -> bool:
    """Whether processors of this type have tile units for bfloat16 (Intel's AMX); only CPUs are asked."""
    checks.instance("device_type", device_type, str)
    flags = Path("/proc/cpuinfo")
    return device_type == "cpu" and flags.exists() and "amx_bf16" in flags.read_text("utf-8")
