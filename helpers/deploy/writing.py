"""The frame of every exporter: a file is put in place only if, read back, it answers as the network does.

A new format is one function here beside the others of ``helpers.export``::

    def to_new(model: nn.Module, path: NewPath, pictures: Pictures | None = None) -> Path:
        pictures = some(pictures)
        with writing(path, model, pictures, "package") as (frozen, part):
            part.write_bytes(package.convert(frozen, example(1, shape_of(pictures))))
        return path

``runtimes.PACKAGES`` says what pip installs for it, ``runtimes.RUNTIMES`` (or ``run``) how a file is opened;
accuracy, latency and memory are then measured like any other's. A line in ``benchmark.run.WRITERS`` and
its name in a recipe's ``exports`` make it a row of the tables (of a published network by ``--measure``).
"""

import copy
import functools
import glob
import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Annotated

import torch
from pydantic import AfterValidator
from torch import Tensor, nn

from helpers.data import Data, Split, batches, load_data
from helpers.deploy.runtimes import Session, needs, open_session, quiet
from helpers.evaluation import predict
from helpers.files import atomic_path
from helpers.runs import plain_attention

PICTURES = 200  # how many a comparison or a calibration takes when the caller names none
TOLERANCE = 1e-2  # largest difference of a logit that float formats may show
AGREEMENT = 0.99  # share of pictures on which a rounded network must name the same class


class ExportError(RuntimeError):
    """An exported network does not answer as PyTorch does, or cannot be exported; the message says why."""


def _filled(split: Split) -> Split:
    if len(split) == 0:
        raise ValueError("hold at least one picture")
    return split.to("cpu")


Pictures = Annotated[Split, AfterValidator(_filled)]  # the type of pictures to compare or measure on


@functools.cache
def default_data() -> Data:
    """Return ``load_data("auto")``, loaded once: whose pictures serve when the caller names none."""
    return load_data("auto")


def some(pictures: Split | None, default: str = "test") -> Split:
    """Return ``pictures``; if None, 200 of the split ``default`` of ``load_data("auto")``."""
    return getattr(default_data(), default).take(slice(0, PICTURES)) if pictures is None else pictures


def some_pair(pictures: Split | None, calibration: Split | None) -> tuple[Split, Split]:
    """Return pictures to compare and to calibrate on, of one shape: each stands in for the other if None.

    Without both: 200 test and 200 training pictures of ``load_data("auto")``.
    """
    compared = some(calibration if pictures is None else pictures)
    calibration = some(pictures if calibration is None else calibration, "train")
    if shape_of(calibration) != shape_of(compared):
        shapes = (" x ".join(map(str, shape_of(split))) for split in (compared, calibration))
        raise ValueError("calibration must hold pictures of {}, as pictures does, got {}".format(*shapes))
    return compared, calibration


def shape_of(pictures: Split) -> tuple[int, ...]:
    """Return the shape of one picture: 3, height, width. Files are written for it."""
    return tuple(pictures.images.shape[1:])


def answers(run: Session, pictures: Split, batch_size: int = 100) -> Tensor:
    """Return the logits that ``run`` gives for every picture: N x classes, float32."""
    return torch.cat(
        [torch.from_numpy(run(images.contiguous().numpy())) for images, _ in batches(pictures, batch_size)]
    )


def example(batch_size: int, shape: Sequence[int]) -> Tensor:
    """Return random pictures, B x ``shape``: the values do not matter to a trace or a clock."""
    return torch.randn((batch_size, *shape), generator=torch.Generator().manual_seed(0))


@contextmanager
def writing(
    path: Path,
    source: nn.Module | Path,
    pictures: Split | None,
    package: str,
    *,
    run: Callable[[Path, Split], Tensor | None] | None = None,
    expect: Callable[[nn.Module | Path, Split], Tensor] = predict,
    share: float | None = None,
    largest: float = TOLERANCE,
    calibrated: bool = False,
    place: Callable[[Path], AbstractContextManager[Path]] = atomic_path,
) -> Iterator[tuple[nn.Module | Path, Path]]:
    """Have the block convert ``source`` into a temporary file, in silence; compare; put the file in place.

    Args:
        path: where the file is to be.
        source: the network; the block gets a frozen copy of it. Or another file, which it gets as it is.
        pictures: what to compare on. Default: 200 test pictures of ``load_data("auto")``.
        package: what converts, and what pip installs if an import fails in the block.
        run: gives the answers of a file; None: it cannot be checked here. Default: by the runtime that the
            suffix of ``path`` names.
        expect: gives the answers of ``source``.
        share: of pictures that must keep their class; None: all, and every answer within ``largest``.
        largest: difference of an answer.
        calibrated: the caller chooses ``calibration`` pictures, which a refusal then names as a way out.
        place: yields the temporary path.

    Yields:
        What to convert, and the temporary path.

    Raises:
        ImportError: ``package`` is not installed; the message says how to.
        ExportError: it does not convert the network, or the answers differ; nothing is written.
    """
    pictures, refused = some(pictures), f"{path} was not written:"
    if isinstance(source, nn.Module):
        shape = shape_of(pictures)
        cannot = f"{refused} the network does not classify pictures of {' x '.join(map(str, shape))}"
        with said(cannot, way_out="pictures= of the size that it takes"):
            source = frozen(source)
            with torch.no_grad():
                output, single = source(example(2, shape)), source(example(1, shape))
        if not isinstance(output, Tensor):
            gives = f"the network gives a {type(output).__name__}, not logits, B x classes"
            raise ExportError(f"{refused} {gives}. Way out: wrap it in a module that returns its logits.")
        if single.shape != (1, *output.shape[1:]):
            gives = f"of one picture the network gives {tuple(single.shape)}, of two {tuple(output.shape)}"
            raise ExportError(f"{refused} {gives}. Way out: .flatten(1) instead of .squeeze().")
    expected = expect(source, pictures)
    if isinstance(source, nn.Module):
        source = pools_last(source, example(2, shape))
    with place(path) as part:
        with said(f"{refused} {package} does not convert this network"), quiet(), needs(package):
            with plain_attention():
                yield source, part
            _alone(part, package)
        with said(f"{refused} its runtime does not run what {package} made of this network"):
            given = run(part, pictures) if run else answers(open_session(part, suffix=path.suffix), pictures)
        if given is not None:
            compare(given, expected, path, share, largest, calibrated)


@contextmanager
def said(text: str, way_out: str = "") -> Iterator[None]:
    """Make one sentence, which begins with ``text``, of whatever a library raises in the block."""
    try:
        yield
    except (OSError, ImportError, ExportError):  # a full disk says nothing about the network
        raise
    except Exception as error:  # exporters raise whatever they like
        end = f". Way out: {way_out}." if way_out else ""
        raise ExportError(f"{text} ({_reason(error)}){end}") from error


# The kind of an error, the first sentence it says, and the operation it names further below, if any.
def _reason(error: Exception) -> str:
    words = re.sub(r"\x1b\[[\d;]*m", "", str(error)).strip()  # without colours
    line = re.split(r"\n|(?<=\w)\. (?=[A-Z])", words, maxsplit=1)[0][:300]
    found = re.search(r"\b(?:aten|torchvision|quantized)(?:\.|::)\w+(?:\.\w+)?", words)
    where = f", at {found[0]}" if found and found[0] not in line else ""
    return f"{type(error).__name__}: {line}{where}"


# A file is moved into its place alone: what a converter has put beside it would stay under a temporary name.
def _alone(part: Path, package: str) -> None:
    beside = [*part.parent.glob(f"{glob.escape(part.name)}?*")]
    for each in beside:
        each.unlink()
    if beside:
        raise ValueError(f"{package} wrote the weights into a second file, and one file is what is asked for")


def frozen(model: nn.Module) -> nn.Module:
    """Return a copy of ``model`` on the CPU, in eval mode and single precision, its weights in plain order.

    ``training.fit`` leaves weights channels last, and litert-torch 0.10 may read such weights in the order of
    memory (https://github.com/google-ai-edge/litert-torch/issues/1238). Of a network that ``torch.compile``
    has wrapped, it is the network.
    """
    model = copy.deepcopy(getattr(model, "_orig_mod", model))
    return model.cpu().float().to(memory_format=torch.contiguous_format).eval()


@torch.no_grad()
def pools_last(model: nn.Module, images: Tensor) -> nn.Module:
    """Return ``model`` with each max pool of an ``nn.Sequential`` behind the layers that only grow.

    The largest of some numbers is still the largest after whatever grows with its input: a ReLU, a batch
    normalisation in eval mode without a negative weight. So the answers stay. A convolution and the batch
    normalisation that the pool kept apart are now neighbours, and every converter folds the one into the
    other: in int8 the runtime need not go to float and back between them. A network whose answers to
    ``images`` do change, because it uses parts of a Sequential on their own, is returned as it was.
    """
    moved = copy.deepcopy(model)
    for block in moved.modules():
        for place in range(len(block) - 1 if isinstance(block, nn.Sequential) else 0):
            pool, layer = block[place], block[place + 1]
            if isinstance(pool, nn.MaxPool2d) and _grows(layer):
                block[place], block[place + 1] = layer, pool
    try:
        same = torch.allclose(moved(images), model(images), atol=TOLERANCE / 10)
    except Exception:  # it uses parts of a Sequential, whose outputs now have other sizes
        same = False
    return moved if same else model


def _grows(layer: nn.Module) -> bool:
    if isinstance(layer, nn.BatchNorm2d):
        return layer.track_running_stats and not (layer.affine and (layer.weight < 0).any())
    return isinstance(layer, (nn.ReLU, nn.ReLU6, nn.Hardtanh))


def compare(
    given: Tensor, expected: Tensor, path: Path, share: float | None, largest: float, calibrated: bool = False
) -> None:
    """Raise ExportError if too few classes are the same or, with no ``share``, an answer is too far off."""
    same = (given.argmax(1) == expected.argmax(1)).float().mean().item()
    difference = (given - expected).abs().max().item()
    least, most = (1, largest) if share is None else (share, math.inf)
    if not (same >= least and difference <= most):
        asked = f"{least:.0%}" if share is not None else f"100%, within {largest:g}"
        like = "calibration= pictures like those it will see, or " if calibrated else ""
        way_out = "" if share is None else f". Way out: {like}agreement= less than {share:g}."
        raise ExportError(
            f"{path} names the same class as before for {same:.1%} of {len(given)} pictures, and the largest "
            f"difference of an answer is {difference:.3g} where the largest answer is "
            f"{expected.abs().max():.3g} (asked: {asked}); it was not written{way_out}"
        )
