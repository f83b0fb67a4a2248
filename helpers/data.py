"""CIFAR-10 and handwritten digits as whole uint8 tensors, with batches and augmentation on the device.

A data set this small fits in memory as one tensor (150 MB for CIFAR-10), so there is no DataLoader and
there are no worker processes: a batch is an index into that tensor, and augmentation is arithmetic on
the index, done for the whole batch at once on whatever device the model is on.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import shutil
import tempfile
import threading
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from helpers import checks

HOME = Path(__file__).resolve().parent.parent
CIFAR10_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
CIFAR10_FOLDER = "cifar-10-batches-py"
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR10_MEAN, CIFAR10_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
SPLIT_SEED = 0  # one split for ever: a model trained by anyone has never seen anyone's validation pictures


class DataError(RuntimeError):
    """A data set's files are missing, truncated or altered; the message names the file and the way out."""


@dataclass(frozen=True)
class Split:
    """Pictures, their labels, and what a model must know to read them.

    Attributes:
        images: uint8, N x 3 x 32 x 32.
        labels: int64, N.
        mean: per channel, of pictures scaled to [0, 1].
        std: per channel, likewise.
        mirror: whether a picture means the same seen in a mirror (a cat does, a handwritten 2 does not).
    """

    images: Tensor
    labels: Tensor
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    mirror: bool = True

    def __post_init__(self) -> None:
        images, labels = (
            checks.instance("images", self.images, Tensor),
            checks.instance("labels", self.labels, Tensor),
        )
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(
                f"images must be uint8, N x 3 x H x W, got {images.dtype}, {tuple(images.shape)}"
            )
        if (
            labels.dtype != torch.int64
            or labels.shape != images.shape[:1]
            or (len(labels) and labels.min() < 0)
        ):
            got = f"{labels.dtype}, {tuple(labels.shape)}"
            raise ValueError(
                f"labels must be int64, 0 or more, one for each of {len(images)} images, got {got}"
            )
        if (
            len(checks.numbers("mean", self.mean)) != 3
            or len(checks.numbers("std", self.std, 0, open_low=True)) != 3
        ):
            raise ValueError(
                f"mean and std must be three numbers each, one per channel, got {self.mean} and {self.std}"
            )

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self.labels)

    def take(self, index: Tensor | slice) -> Split:
        """Return the pictures at ``index`` as a Split of their own.

        Args:
            index: a slice, or a vector of whole numbers or of a truth value for each picture.

        Raises:
            TypeError: it is something else.
            ValueError: it points beyond the pictures.
        """
        count = len(self.labels)
        if isinstance(index, slice):
            for part, low in ((index.start, -checks.LARGEST), (index.stop, -checks.LARGEST), (index.step, 1)):
                if part is not None:
                    checks.integer("index", part, low)
        elif checks.instance("index", index, Tensor).dtype == torch.bool:
            if index.shape != (count,):
                raise ValueError(
                    f"index must have a truth value for each of {count} pictures, got shape {tuple(index.shape)}"
                )
        elif index.ndim != 1 or index.dtype not in (torch.int64, torch.int32):
            raise TypeError(
                f"index must be a vector of whole numbers, got {index.dtype}, shape {tuple(index.shape)}"
            )
        elif len(index) and not -count <= int(index.min()) <= int(index.max()) < count:
            raise ValueError(
                f"index must be from {-count} to {count - 1}, got {int(index.min())} to {int(index.max())}"
            )
        return replace(self, images=self.images[index], labels=self.labels[index])

    def to(self, device: torch.device | str) -> Split:
        """Return the split with its tensors on ``device``."""
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))


@dataclass(frozen=True)
class Data:
    """A data set in three splits.

    Attributes:
        name: "cifar10" or "digits".
        classes: the class names; the label is the index.
        mean: per channel, of training pictures scaled to [0, 1].
        std: per channel, likewise.
        train: what weights are fitted on.
        validation: what every choice (epoch, rank, sparsity, temperature) is made on.
        test: touched once, at the end.
    """

    name: str
    classes: tuple[str, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    train: Split = field(repr=False)
    validation: Split = field(repr=False)
    test: Split = field(repr=False)

    def __post_init__(self) -> None:
        checks.instance("name", self.name, str)
        checks.names("classes", self.classes)
        for part in ("train", "validation", "test"):
            labels = checks.instance(part, getattr(self, part), Split).labels
            if len(labels) == 0 or labels.max() >= len(self.classes):
                raise ValueError(
                    f"{part} must hold pictures, of the {len(self.classes)} classes, got {len(labels)} pictures"
                )

    def __str__(self) -> str:
        """Return one line: the name and the size of each split."""
        return (
            f"{self.name}: {len(self.train):,} training, {len(self.validation):,} validation and "
            f"{len(self.test):,} test pictures of {len(self.classes)} classes"
        )


def load_data(
    name: str = "auto", root: str | os.PathLike | None = None, train_limit: int | None = None, seed: int = 0
) -> Data:
    """Load a data set as tensors.

    Args:
        name: "cifar10" (50,000 + 10,000 colour pictures, Krizhevsky 2009), "digits" (scikit-learn's 1,797
            handwritten digits, inside that package) or "auto": CIFAR-10 where it is on disk or can be
            downloaded, digits elsewhere.
        root: the folder that holds, or will hold, ``cifar-10-batches-py``. Default: the environment variable
            ``CIFAR10_ROOT``, else ``data/`` of this project.
        train_limit: keep only this many training pictures, drawn stratified by class. Default: all.
        seed: which pictures ``train_limit`` draws. The three splits themselves never change.

    Returns:
        Data: CIFAR-10 as 45,000 / 5,000 / 10,000, digits as 1,297 / 200 / 300; stratified by class.

    Raises:
        ValueError: an unknown name, or a train_limit out of range.
        DataError: CIFAR-10's files are damaged, or absent and out of reach.
    """
    checks.choice("name", name, ("auto", "cifar10", "digits"))
    checks.integer("seed", seed, 0, 2**32 - 1)
    root = checks.path("root", root) if root is not None else cifar10_root()
    if name == "auto":
        name = _choose(root)
    data = _digits() if name == "digits" else _cifar10(root)
    if train_limit is not None:
        checks.integer("train_limit", train_limit, len(data.classes), len(data.train))
        keep, _ = _stratified(data.train.labels, train_limit, seed)
        data = replace(data, train=data.train.take(keep))
    return data


def cifar10_root() -> Path:
    """Return the folder that holds, or will hold, CIFAR-10: ``CIFAR10_ROOT`` from the environment, else ``data/``."""
    return Path(os.environ.get("CIFAR10_ROOT") or HOME / "data")


def normalize(images: Tensor, source: Split | Data) -> Tensor:
    """Scale uint8 pictures to [0, 1], then to zero mean and unit variance per channel.

    Args:
        images: uint8, N x 3 x H x W.
        source: whose mean and std to use.

    Returns:
        float32, N x 3 x H x W, channels last.
    """
    checks.instance("source", source, (Split, Data))
    if checks.instance("images", images, Tensor).ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images must be N x 3 x H x W, got {tuple(images.shape)}")
    mean = torch.tensor(source.mean, device=images.device).view(1, 3, 1, 1)
    std = torch.tensor(source.std, device=images.device).view(1, 3, 1, 1)
    return ((images.float() / 255 - mean) / std).contiguous(memory_format=torch.channels_last)


def augment(images: Tensor, generator: torch.Generator, *, shift: int = 4, mirror: bool = True) -> Tensor:
    """Shift every picture of a batch by its own random amount, and mirror every second one on average.

    The same as padding by ``shift`` with the reflected border and cropping at random, but written as an
    index: output pixel (y, x) is read from (y + dy, x + dx), reflected at the border.

    Args:
        images: N x C x H x W, any type.
        generator: on the same device as ``images``; the same state gives the same pictures.
        shift: the largest shift, in pixels, in either direction; less than H and W.
        mirror: whether to mirror.

    Returns:
        A new tensor of the same shape and type.
    """
    if checks.instance("images", images, Tensor).ndim != 4:
        raise ValueError(f"images must be N x C x H x W, got {tuple(images.shape)}")
    checks.instance("generator", generator, torch.Generator)
    count, channels, height, width = images.shape
    checks.integer("shift", shift, 0, min(height, width) - 1)
    device = images.device

    def positions(size: int) -> Tensor:
        offset = torch.randint(-shift, shift + 1, (count, 1), generator=generator, device=device)
        position = (torch.arange(size, device=device) + offset).abs()
        return size - 1 - (size - 1 - position).abs()

    rows, columns = positions(height), positions(width)
    if mirror:
        flip = torch.rand(count, 1, generator=generator, device=device) < 0.5
        columns = torch.where(flip, columns.flip(1), columns)
    flat = (rows[:, :, None] * width + columns[:, None, :]).view(count, 1, -1).expand(-1, channels, -1)
    return images.reshape(count, channels, -1).gather(2, flat).view(images.shape)


def cutout(images: Tensor, generator: torch.Generator, size: int) -> Tensor:
    """Hide a square of every picture, each at its own random place: what is left must do (DeVries and Taylor 2017, section 3).

    Args:
        images: normalised, B x C x H x W; what is hidden becomes 0, the mean colour.
        generator: on the same device as ``images``; the same state hides the same squares.
        size: side of the square, in pixels; its middle is anywhere in the picture, so that it may hang over the border.

    Returns:
        A new tensor of the same shape and type, channels last.
    """
    if checks.instance("images", images, Tensor).ndim != 4:
        raise ValueError(f"images must be B x C x H x W, got {tuple(images.shape)}")
    checks.instance("generator", generator, torch.Generator)
    checks.integer("size", size, 0, min(images.shape[2:]))
    return _hide(images, _holes(images, generator, size))


def _holes(images: Tensor, generator: torch.Generator, size: int) -> Tensor:
    """Draw a square for each picture: B x 1 x H x W, true inside."""
    count, _, *sides = images.shape

    def inside(length: int) -> Tensor:
        first = torch.randint(length, (count, 1), generator=generator, device=images.device) - size // 2
        position = torch.arange(length, device=images.device)
        return (position >= first) & (position < first + size)

    rows, columns = (inside(side) for side in sides)
    return (rows[:, :, None] & columns[:, None, :])[:, None]


def _hide(images: Tensor, holes: Tensor) -> Tensor:
    return images.masked_fill(holes, 0).contiguous(memory_format=torch.channels_last)


def batches(
    split: Split,
    batch_size: int,
    *,
    generator: torch.Generator | None = None,
    augmented: bool = False,
    hole: int = 0,
    rank: int = 0,
    world: int = 1,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield one epoch of (images, labels), ready for a model.

    Args:
        split: what to read.
        batch_size: pictures in a batch; the last one may be smaller unless shuffled.
        generator: shuffles, and drops the last incomplete batch (so that every step weighs the same).
            None: in order, all of it.
        augmented: random shift and mirroring; needs ``generator``.
        hole: side of the square that ``cutout`` hides, in pixels; needs ``generator``. 0: nothing is hidden.
        rank: which of ``world`` equal shares of each batch to yield (one process each in distributed training).
        world: number of processes.

    Yields:
        images: float32, normalised, B x 3 x 32 x 32, channels last. labels: int64, B.
    """
    checks.instance("split", split, Split)
    checks.integer("batch_size", batch_size, 1)
    checks.integer("rank", rank, 0, checks.integer("world", world, 1) - 1)
    checks.integer("hole", hole, 0, min(split.images.shape[2:]))
    if generator is not None or augmented or hole:
        checks.instance("generator", generator, torch.Generator)
    device = split.labels.device
    if generator is None:
        order, total = torch.arange(len(split), device=device), len(split)
    else:
        order = torch.randperm(len(split), generator=generator, device=generator.device).to(device)
        batch_size = min(batch_size, len(split))
        total = len(split) // batch_size * batch_size
    for start in range(0, total, batch_size):
        index = order[start : start + batch_size]
        images = split.images[index]
        if augmented:
            images = augment(images, generator, mirror=split.mirror)
        own = normalize(images[rank::world], split)
        if hole:  # drawn for all, so that the processes agree
            own = _hide(own, _holes(images, generator, hole)[rank::world])
        yield own, split.labels[index[rank::world]]


# -- where the pictures come from ------------------------------------------------------------------------------------


def _stratified(labels: Tensor, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Split 0..N-1 into ``count`` indices with the classes in proportion, and the rest; both sorted."""
    generator = torch.Generator().manual_seed(seed)
    shuffled = torch.randperm(len(labels), generator=generator)
    position = torch.empty(
        len(labels), dtype=torch.float64
    )  # how far into its class each picture comes, in (0, 1)
    for label in labels.unique():
        own = shuffled[labels[shuffled] == label]
        position[own] = (torch.arange(len(own), dtype=torch.float64) + 0.5) / len(own)
    order = position.argsort(stable=True)
    return order[:count].sort().values, order[count:].sort().values


def _choose(root: Path) -> str:
    try:
        if not (root / CIFAR10_FOLDER).exists():
            _download(root)
        return "cifar10"
    except DataError:
        print(f"CIFAR-10 is neither in {root} nor reachable: using scikit-learn's digits instead.")
        return "digits"


def _reachable(url: str, seconds: float = 5.0) -> bool:
    """Whether ``url`` answers within ``seconds``, name look-up included."""
    answer: list[bool] = []

    def ask() -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=seconds).close()
            answer.append(True)
        except (OSError, http.client.HTTPException):
            pass

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    return bool(answer)


def _cifar10(root: Path) -> Data:
    from torchvision.datasets import CIFAR10

    folder = root / CIFAR10_FOLDER
    if folder.exists():
        _verify(folder, CIFAR10)
    else:
        _download(root)
    images, labels = [], []
    for train in (True, False):
        dataset = CIFAR10(root, train=train)
        images.append(torch.from_numpy(np.ascontiguousarray(dataset.data.transpose(0, 3, 1, 2))))
        labels.append(torch.tensor(dataset.targets))
    held_out, rest = _stratified(labels[0], 5_000, SPLIT_SEED)
    full, test = (Split(i, n, CIFAR10_MEAN, CIFAR10_STD) for i, n in zip(images, labels, strict=True))
    return Data(
        "cifar10", CIFAR10_CLASSES, CIFAR10_MEAN, CIFAR10_STD, full.take(rest), full.take(held_out), test
    )


def _verify(folder: Path, dataset: type) -> None:
    """Check every file against the MD5 that torchvision lists; name the first that is off."""
    way_out = f"delete the folder {folder} and load again: it is downloaded anew"
    for name, md5 in [
        *dataset.train_list,
        *dataset.test_list,
        [dataset.meta["filename"], dataset.meta["md5"]],
    ]:
        path = folder / name
        try:
            found = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
        except FileNotFoundError:
            raise DataError(f"{path} is missing: an interrupted download? Way out: {way_out}.") from None
        except OSError as error:
            raise DataError(f"{path} cannot be read ({error}). Way out: {way_out}.") from error
        if found != md5:
            size = path.stat().st_size
            raise DataError(
                f"{path} ({size:,} bytes) is truncated or altered: MD5 {found}, published {md5}. Way out: {way_out}."
            )


def _download(root: Path) -> None:
    """Fetch CIFAR-10 into a temporary folder, then move it into place whole; a second process waits for the first."""
    from torchvision.datasets import CIFAR10

    try:
        if not _reachable(CIFAR10_URL):
            raise OSError("no answer within 5 seconds")
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / ".cifar10.lock"):
            if (root / CIFAR10_FOLDER).exists():
                return
            for left in root.glob(".cifar10-*"):  # by a process that was killed while it downloaded
                shutil.rmtree(left)
            with tempfile.TemporaryDirectory(prefix=".cifar10-", dir=root) as part:
                CIFAR10(part, download=True)
                (Path(part) / CIFAR10_FOLDER).rename(root / CIFAR10_FOLDER)
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        raise DataError(
            f"{root / CIFAR10_FOLDER} does not exist and {CIFAR10_URL} could not be fetched ({error}). Way out: unpack that "
            f'archive in {root}, or set CIFAR10_ROOT to a folder that holds it, or use load_data("digits").'
        ) from error


def _digits() -> Data:
    """scikit-learn's copy of the UCI optical digits (8 x 8, 17 grey levels), enlarged to 3 x 32 x 32."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    small = torch.from_numpy(digits.images).float()[:, None] * (255 / 16)
    images = torch.nn.functional.interpolate(small, size=(32, 32), mode="bilinear", align_corners=False)
    images = images.round().to(torch.uint8).expand(-1, 3, -1, -1).contiguous()
    labels = torch.from_numpy(digits.target).long()
    test, rest = _stratified(labels, 300, SPLIT_SEED)
    held_out, train = _stratified(labels[rest], 200, SPLIT_SEED)
    pixels = images[rest[train]].float() / 255
    mean, std = (pixels.mean().item(),) * 3, (pixels.std().item(),) * 3
    full = Split(images, labels, mean, std, mirror=False)
    names = tuple(str(digit) for digit in digits.target_names)
    return Data(
        "digits", names, mean, std, full.take(rest[train]), full.take(rest[held_out]), full.take(test)
    )
