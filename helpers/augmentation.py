"""Random changes of pictures that leave their meaning: a batch at a time, as indices and masks."""

import torch
from torch import Tensor

from helpers.types import Whole, checked, shown


@checked
def augment(images: Tensor, generator: torch.Generator, *, shift: Whole = 4, mirror: bool = True) -> Tensor:
    """Shift every picture of a batch by its own random amount, and mirror every second one on average.

    The same as padding with the reflected border and cropping at random, but written as an index: output
    pixel (y, x) is read from (y + dy, x + dx), reflected at the border.

    Args:
        images: N x C x H x W, any type; new ones, alike, are returned.
        generator: on the same device as ``images``; the same state gives the same pictures.
        shift: the largest shift, in pixels, in either direction; less than H and W.
    """
    if images.ndim != 4 or shift >= min(images.shape[2:]):
        raise ValueError(f"images must be N x C x H x W, larger than shift {shift}, got {shown(images)}")
    count, channels, height, width = images.shape
    rows, columns = (_shifted(size, count, shift, generator, images.device) for size in (height, width))
    if mirror:
        flip = torch.rand(count, 1, generator=generator, device=images.device) < 0.5
        columns = torch.where(flip, columns.flip(1), columns)
    flat = (rows[:, :, None] * width + columns[:, None, :]).view(count, 1, -1).expand(-1, channels, -1)
    return images.reshape(count, channels, -1).gather(2, flat).view(images.shape)


def _shifted(size: int, count: int, shift: int, generator: torch.Generator, device: torch.device) -> Tensor:
    # for each picture where its pixels are read from, reflected at both ends: count x size
    offset = torch.randint(-shift, shift + 1, (count, 1), generator=generator, device=device)
    position = (torch.arange(size, device=device) + offset).abs()
    return size - 1 - (size - 1 - position).abs()


def holes(images: Tensor, generator: torch.Generator, size: int) -> Tensor:
    """Draw a square of each picture to be hidden (cutout; DeVries and Taylor 2017, section 3).

    Returns bool, B x 1 x H x W, true inside the square. Its side is ``size`` pixels; its middle is anywhere
    in the picture, so it may hang over the border.
    """
    inside = []
    for length in images.shape[2:]:
        first = torch.randint(length, (len(images), 1), generator=generator, device=images.device) - size // 2
        position = torch.arange(length, device=images.device)
        inside.append((position >= first) & (position < first + size))
    return inside[0][:, None, :, None] & inside[1][:, None, None, :]
