"""Pictures (CIFAR-10, digits, a folder's) as whole uint8 tensors; batches and augmentation on the device.

There is no DataLoader and there are no worker processes: a batch is an index into one tensor (180 MB for
CIFAR-10), and augmentation is arithmetic on the index, for the whole batch, on the model's device.
"""

from __future__ import annotations

import hashlib
import http.client
import importlib
import os
import pickle
import shutil
import tempfile
import urllib.request
from collections.abc import Callable, Iterator
from concurrent import futures
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor
from torchvision.datasets import CIFAR10

from helpers.augmentation import augment, holes
from helpers.types import AnyPath, Count, Names, Number, Positive, Seed, Whole, checked, shown

HOME = Path(__file__).resolve().parent.parent
CIFAR10_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
CIFAR10_FOLDER = "cifar-10-batches-py"
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR10_MEAN, CIFAR10_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
PATIENCE = 5.0  # seconds, for the host to answer
SPLIT_SEED = 0  # one split for ever: a model trained by anyone has never seen anyone's validation pictures


class DataError(RuntimeError):
    """A data set's files are missing, truncated or altered; the message names the file and the way out."""


@checked
@dataclass(frozen=True)
class Split:
    """Pictures, their labels, and what a model must know to read them.

    Attributes:
        images: uint8, N x 3 x H x W.
        labels: int64, N; or float32, N x C: each picture's probabilities, as a teacher gives them.
        mean, std: per channel, of pictures scaled to [0, 1].
        mirror: whether a picture means the same seen in a mirror (a cat does, a handwritten 2 does not).
    """

    images: Tensor
    labels: Tensor
    mean: tuple[Number, Number, Number]
    std: tuple[Positive, Positive, Positive]
    mirror: bool = True

    def __post_init__(self) -> None:
        images, labels = self.images, self.labels
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"images must be uint8, N x 3 x H x W, got {shown(images)}")
        kind = {1: torch.int64, 2: torch.float32}.get(labels.ndim)
        if labels.dtype != kind or len(labels) != len(images) or not (labels >= 0).all():
            kinds = "int64, N of 0 or more, or float32, N x C of 0 or more"
            raise ValueError(f"labels must be {kinds}, as many as images, got {shown(labels)}")

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def likeliest(self) -> Tensor:
        """Each picture's class, int64, N: of probabilities the largest."""
        return self.labels if self.labels.ndim == 1 else self.labels.argmax(1)

    def take(self, index: Tensor | slice) -> Split:
        """Return the pictures at ``index``: a slice, or a vector of whole numbers or of N truth values."""
        try:  # on the CPU first: on a GPU a wrong index ends the process
            places = torch.arange(len(self))[index if isinstance(index, slice) else index.cpu()]
            if places.ndim != 1:
                raise IndexError("it is no vector")
        except (AttributeError, IndexError, TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"index must fit {len(self)} pictures, got {shown(index)} ({error})") from None
        return replace(self, images=self.images[index], labels=self.labels[index])

    def to(self, device: torch.device | str) -> Split:
        """Return the split with its tensors on ``device``."""
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))


@checked
@dataclass(frozen=True)
class Data:
    """A data set in three splits.

    Attributes:
        name, classes: "cifar10", "digits" or a folder, and its classes: a label is an index into them.
        mean, std: per channel, of training pictures scaled to [0, 1].
        train, validation, test: to fit weights on, to make every choice on, and to touch once, at the end.
    """

    name: str
    classes: Names
    mean: tuple[Number, Number, Number]
    std: tuple[Positive, Positive, Positive]
    train: Split = field(repr=False)
    validation: Split = field(repr=False)
    test: Split = field(repr=False)

    def __post_init__(self) -> None:
        for part in ("train", "validation", "test"):
            labels, count = getattr(self, part).likeliest, len(self.classes)
            if len(labels) == 0 or labels.max() >= count:
                raise ValueError(f"{part} must hold pictures of {count} classes, got labels: {shown(labels)}")

    def __str__(self) -> str:
        sizes = f"{len(self.train):,} training, {len(self.validation):,} validation, {len(self.test):,} test"
        return f"{self.name}: {sizes} pictures of {len(self.classes)} classes"


@checked
def load_data(
    name: Literal["auto", "cifar10", "digits"] = "auto",
    root: AnyPath | None = None,
    train_limit: Count | None = None,
    seed: Seed = 0,
) -> Data:
    """Load a data set as tensors.

    Args:
        name: "cifar10" (60,000 colour pictures, Krizhevsky 2009), "digits" (scikit-learn's 1,797 handwritten
            digits) or "auto": CIFAR-10 where it is on disk or can be downloaded, digits elsewhere.
        root: the folder that holds, or will hold, ``cifar-10-batches-py``. Default: ``cifar10_root()``.
        train_limit: keep only this many training pictures, drawn stratified by class. Default: all.
        seed: which pictures ``train_limit`` draws. The three splits themselves never change.

    Returns:
        CIFAR-10 as 45,000 / 5,000 / 10,000 pictures, digits as 1,297 / 200 / 300; stratified by class.

    Raises:
        DataError: CIFAR-10's files are damaged, or absent and out of reach.
    """
    root = root or cifar10_root()
    try:
        data = _digits() if name == "digits" else _cifar10(root)
    except DataError:
        if name == "cifar10" or (root / CIFAR10_FOLDER).exists():
            raise
        print(f"CIFAR-10 is neither in {root} nor reachable: using scikit-learn's digits instead.")
        data = _digits()
    if train_limit is None:
        return data
    if not len(data.classes) <= train_limit <= len(data.train):
        raise ValueError(f"train_limit must be {len(data.classes)} to {len(data.train)}, got {train_limit}")
    return replace(data, train=data.train.take(_stratified(data.train.likeliest, train_limit, seed)[0]))


def cifar10_root() -> Path:
    """Return the folder for CIFAR-10: the environment variable ``CIFAR10_ROOT``, or ``data/`` here."""
    return Path(os.environ.get("CIFAR10_ROOT") or HOME / "data")


@checked
def normalize(images: Tensor, source: Split | Data) -> Tensor:
    """Scale uint8 pictures by 255 and ``source``'s mean and std: float32, N x 3 x H x W, channels last."""
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images must be N x 3 x H x W, got {shown(images)}")
    mean, std = torch.tensor((source.mean, source.std), device=images.device).view(2, 1, 3, 1, 1)
    return ((images.float() / 255 - mean) / std).contiguous(memory_format=torch.channels_last)


@checked
def batches(
    split: Split,
    batch_size: Count,
    *,
    generator: torch.Generator | None = None,
    augmented: bool = False,
    hole: Whole = 0,
    rank: Whole = 0,
    world: Count = 1,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield one epoch of (images, labels), ready for a model.

    Args:
        split, batch_size: what to read, and how many pictures at a time.
        generator: shuffles, and drops the last incomplete batch: every step weighs the same. None: in order.
        augmented, hole: random shift and mirroring; side of the square that is set to 0, the mean colour, at
            a random place (cutout). Both need ``generator``.
        rank, world: which of so many equal shares of each batch to yield, one to a process.

    Yields:
        images: float32, normalised, B x 3 x H x W, channels last. labels: B, or B x C.
    """
    if rank >= world:
        raise ValueError(f"rank must be less than world, {world}, got {rank}")
    if hole > min(split.images.shape[2:]):
        raise ValueError(f"hole must be no larger than the pictures, got {hole}")
    if generator is None and (augmented or hole):
        raise TypeError("generator must be given where pictures are augmented or hidden, got None")
    order = torch.arange(len(split))
    if generator is not None:
        batch_size = min(batch_size, len(split))
        order = torch.randperm(len(split), generator=generator, device=generator.device)
        order = order[: len(split) // batch_size * batch_size]
    for index in order.to(split.labels.device).split(batch_size):
        images = split.images[index]
        if augmented:
            images = augment(images, generator, mirror=split.mirror)
        own = normalize(images[rank::world], split)
        if hole:  # drawn for all, so that the processes agree
            own.masked_fill_(holes(images, generator, hole)[rank::world], 0)
        yield own, split.labels[index[rank::world]]


# -- where the pictures come from ----------------------------------------------------------------------------


def __getattr__(name: str) -> Callable:  # of the module: a folder's pictures need what stands here first
    if name == "from_folder":
        return importlib.import_module("helpers.folder").from_folder
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _stratified(labels: Tensor, count: int, seed: int) -> tuple[Tensor, Tensor]:
    # 0..N-1 as ``count`` indices with the classes in proportion, and the rest; both sorted
    shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    position = torch.empty(len(labels), dtype=torch.float64)  # of a picture within its class, in (0, 1)
    for label in labels.unique():
        own = shuffled[labels[shuffled] == label]
        position[own] = (torch.arange(len(own), dtype=torch.float64) + 0.5) / len(own)
    order = position.argsort(stable=True)
    return order[:count].sort().values, order[count:].sort().values


def _cifar10(root: Path) -> Data:
    if not (root / CIFAR10_FOLDER).exists():
        _download(root)
    full, test = (_read(root / CIFAR10_FOLDER, one) for one in (CIFAR10.train_list, CIFAR10.test_list))
    held_out, rest = _stratified(full.labels, 5_000, SPLIT_SEED)
    splits = full.take(rest), full.take(held_out), test
    return Data("cifar10", CIFAR10_CLASSES, CIFAR10_MEAN, CIFAR10_STD, *splits)


def _read(folder: Path, listed: list[tuple[str, str]]) -> Split:
    # each file once; they are pickles, so nothing but what was published may be opened
    way_out = f"Way out: delete the folder {folder} and load again: it is downloaded anew."
    images, labels = [], []
    for name, md5 in listed:
        path = folder / name
        try:
            content = path.read_bytes()
        except OSError as error:
            raise DataError(f"{path} is missing or cannot be read ({error}). {way_out}") from error
        found = hashlib.md5(content, usedforsecurity=False).hexdigest()
        if found != md5:
            state = f"({len(content):,} bytes) is truncated or altered: MD5 {found}, published {md5}"
            raise DataError(f"{path} {state}. {way_out}")
        batch = pickle.loads(content, encoding="bytes")
        images.append(batch[b"data"].reshape(-1, 3, 32, 32))
        labels += batch[b"labels"]
    return Split(torch.from_numpy(np.concatenate(images)), torch.tensor(labels), CIFAR10_MEAN, CIFAR10_STD)


def _download(root: Path) -> None:
    # into a temporary folder, then moved into place whole; a second process waits for the first
    try:
        request = urllib.request.Request(CIFAR10_URL, method="HEAD")
        pool = futures.ThreadPoolExecutor(1)  # because urlopen's own limit leaves out the name look-up
        pool.submit(urllib.request.urlopen, request, timeout=PATIENCE).result(PATIENCE).close()
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / ".cifar10.lock"):
            if (root / CIFAR10_FOLDER).exists():
                return
            for left in root.glob(".cifar10-*"):  # by a process that was killed while it downloaded
                shutil.rmtree(left)
            with tempfile.TemporaryDirectory(prefix=".cifar10-", dir=root) as part:
                CIFAR10(part, download=True)
                (Path(part) / CIFAR10_FOLDER).rename(root / CIFAR10_FOLDER)
    except (OSError, RuntimeError, http.client.HTTPException, futures.TimeoutError) as error:
        said = f"{root / CIFAR10_FOLDER} does not exist and {CIFAR10_URL} could not be fetched ({error!r})"
        hint = f'unpack it in {root}, set CIFAR10_ROOT to where it is, or use load_data("digits")'
        raise DataError(f"{said}. Way out: {hint}.") from error


def _digits() -> Data:
    # scikit-learn's copy of the UCI optical digits (8 x 8, 17 grey levels), enlarged to 3 x 32 x 32
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
    full, names = Split(images, labels, mean, std, mirror=False), tuple("0123456789")
    parts = (full.take(index) for index in (rest[train], rest[held_out], test))
    return Data("digits", names, mean, std, *parts)
