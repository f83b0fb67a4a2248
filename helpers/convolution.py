"""Convolutions of small maps as matrix products: several times as fast on processors with AMX tiles.

Such a unit multiplies 16 rows at a time, and PyTorch's CPU library (oneDNN) gives it the pixels of one row of
a map. VGG-19's last eight layers see maps of 4 x 4 and 2 x 2 pixels, so most of every tile stays empty.
Written as one product over the pixels of all pictures (im2col; Chellapilla 2006, section 2), every tile is
full. Same outputs, up to the order in which they are added. (In bfloat16 the gradient of the pictures is a
little coarser: it is a sum over the kernel's pixels, of numbers that are rounded first.)
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

WIDEST = 4  # pixels in a row of the output; at 8 the library's own convolution is faster


def _convolve(
    images: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
) -> Tensor:
    """Convolve as ``torch.nn.functional.conv2d`` does (one group, no dilation), by one matrix product.

    Args:
        images: B x C x H x W, with its padding at least as large as the kernel.
        weight: O x C x h x w, of the same type.
        bias: one for each of the O outputs, or None.
        stride: down and across.
        padding: zeros above and below, left and right.

    Returns:
        B x O x H' x W', channels last.
    """
    (outputs, _, *kernel), (down, across) = weight.shape, stride
    padded = F.pad(images.permute(0, 2, 3, 1), (0, 0, padding[1], padding[1], padding[0], padding[0]))
    rows, columns = ((padded.shape[i + 1] - kernel[i]) // stride[i] + 1 for i in (0, 1))
    seen = [  # what the kernel's pixel (y, x) meets, at every place where the kernel is laid
        padded[:, y : y + rows * down : down, x : x + columns * across : across]
        for y in range(kernel[0])
        for x in range(kernel[1])
    ]
    patches = torch.cat(seen, dim=-1).flatten(0, 2)
    product = F.linear(patches, weight.permute(0, 2, 3, 1).reshape(outputs, -1), bias)
    return product.view(len(images), rows, columns, outputs).permute(0, 3, 1, 2)


class SmallMaps(TorchFunctionMode):
    """For the block: under autocast to bfloat16, convolutions to maps at most 4 pixels wide are products."""

    def __torch_function__(
        self, function: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        """Take a convolution over where its map is small; let everything else through."""
        if function is torch.conv2d and not kwargs and _takes(*args):
            halved = (part if part is None else part.bfloat16() for part in args[:3])
            return _convolve(*halved, *args[3:5])
        return function(*args, **(kwargs or {}))


def _takes(
    images: Tensor,
    weight: Tensor,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> bool:
    # called as nn.Conv2d does, with pairs of numbers, on what autocast would compute in bfloat16
    pairs = all(isinstance(pair, tuple) and len(pair) == 2 for pair in (stride, padding))
    halved = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
    known = images.ndim == 4 and images.dtype in (torch.float32, torch.bfloat16)
    if not (pairs and halved and known) or groups != 1 or dilation not in (1, (1, 1)):
        return False
    return (images.shape[3] + 2 * padding[1] - weight.shape[3]) // stride[1] < WIDEST
