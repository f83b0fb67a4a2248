"""A folder of pictures of any sizes as the tensors that everything else here works on."""

import hashlib
import json
import os
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS
from tqdm.auto import tqdm

from helpers.data import Data, Split
from helpers.files import atomic_path
from helpers.types import AnyPath, Positive, Seed, checked, real, whole

Pixels, Part = whole(8, 4096), real(gt=0, lt=1)
FOLDERS = {  # of splits, in any case
    "train": ("train", "training"),
    "validation": ("val", "valid", "validation", "eval"),
    "test": ("test", "testing"),
}
ENDINGS, HIDDEN = (*IMG_EXTENSIONS, ".gif"), (".", "__")  # .git, __MACOSX

Listed = list[tuple[Path, int]]  # files with their labels


@checked
def from_folder(
    path: AnyPath,
    pixels: Pixels | tuple[Pixels, Pixels] = 64,
    *,
    validation: Part = 0.1,
    test: Part = 0.1,
    seed: Seed = 0,
    mirror: bool = True,
    memory_gb: Positive = 4.0,
    cache: AnyPath | None = None,
    progress: bool = True,
) -> Data:
    """Read a folder of pictures, one sub-folder for each class, as tensors.

    Every picture is turned as its camera held it, scaled until it covers ``pixels``, cropped about its centre
    and converted to RGB. Hidden files are ignored; files that cannot be read are left out, with a warning.

    Args:
        path: holds a folder for each class, or the folders train and test or val that do. A split without a
            folder of its own is drawn from the training pictures.
        pixels: the side of the pictures, or (height, width), 8 to 4096.
        validation, test: shares of each class to hold out, at least one picture, where there is no folder.
        seed: which pictures are held out, and the order of all.
        mirror: whether a picture means the same seen in a mirror (see ``Split``).
        memory_gb: more than this lies in a file that is mapped, not read: on a CPU only what a batch needs is
            loaded; a GPU gets the whole.
        cache: the folder for that file, which later calls find again. Default: in the user's cache folder.
        progress: show a bar.

    Returns:
        Images are uint8, N x 3 x height x width, classes in alphabetical order; mean and std are those of the
        training pictures.

    Raises:
        ValueError: ``path`` is no folder, or holds fewer than two classes or too few pictures of one.
        OSError: the file in ``cache`` cannot be written.
    """
    size = pixels if isinstance(pixels, tuple) else (pixels, pixels)
    if validation + test >= 1:
        raise ValueError(f"validation must leave pictures to train on, got {validation} beside test {test}")
    classes, parts = _parts(path, {"validation": validation, "test": test}, seed)
    files = [file for part in parts.values() for file, _ in part]
    if 3 * size[0] * size[1] * len(files) <= memory_gb * 1e9:
        broken: list[str] = []
        rows = np.fromiter(_rows(files, size, broken, progress), np.dtype((np.uint8, (3, *size))))
        images = torch.from_numpy(rows)
    else:
        default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        folder = cache or default / "neural-network-compression"
        images, broken = _mapped(folder, path.resolve().name, files, size, progress)
    if broken:
        more = f" and {len(broken) - 10} more" if len(broken) > 10 else ""
        said = f"{len(broken)} of {len(files)} files cannot be read and are left out"
        warnings.warn(f"{said}: {', '.join(broken[:10])}{more}", stacklevel=3)  # 3: whoever called
    return _data(path, classes, parts, images, {*broken}, mirror)


def _data(
    path: Path, classes: list[str], parts: dict[str, Listed], images: Tensor, broken: set[str], mirror: bool
) -> Data:
    labels = {
        name: torch.tensor([label for file, label in part if str(file) not in broken])
        for name, part in parts.items()
    }
    for name, own in labels.items():
        missing = set(range(len(classes))) - {*own.tolist()} if name == "train" else not len(own)
        if missing:
            of = f" of {classes[min(missing)]!r}" if name == "train" else ""
            raise ValueError(f"path must hold readable pictures for {name}, got none{of} in {path}")
    pictures = dict(zip(parts, images.split([len(own) for own in labels.values()]), strict=True))
    mean, std = _statistics(pictures["train"])
    splits = {name: Split(pictures[name], labels[name], mean, std, mirror) for name in parts}
    return Data(path.resolve().name, tuple(classes), mean, std, **splits)


# -- which pictures there are --------------------------------------------------------------------------------


def _parts(path: Path, shares: dict[str, float], seed: int) -> tuple[list[str], dict[str, Listed]]:
    # the classes, and the files of each split with their labels, in an order drawn from ``seed``
    if not path.is_dir():
        raise ValueError(f"path must be a folder, got {path}")
    folders = _folders(path)
    there = {part: [one for one in folders if one.name.lower() in names] for part, names in FOLDERS.items()}
    if twice := [own for own in there.values() if len(own) > 1]:
        raise ValueError(f"path must hold one folder for each split, got {' and '.join(map(str, twice[0]))}")
    found = {part: _listed(own[0]) for part, own in there.items() if own}
    if len(found) > 1 and "train" not in found:
        raise ValueError(f"path must hold train beside {' and '.join(found)}, got {path}")
    if len(found) < 2 and folders != (there["train"] or None):
        found = {"train": _listed(path)}  # the classes themselves
        within = [{inner.name for inner in _folders(one)} for one in folders]
        if len(within) > 1 and within[0] and all(names == within[0] for names in within):
            warnings.warn(
                f"{', '.join(found['train'])} are taken for classes, though all hold the folders "
                f"{', '.join(sorted(within[0]))}; splits are called train, val and test",
                stacklevel=4,
            )
    classes, generator = list(found["train"]), torch.Generator().manual_seed(seed)
    if len(classes) < 2:
        raise ValueError(f"path must hold a folder for each of two or more classes, got {classes} in {path}")
    for part, files in found.items():
        if strange := [name for name in files if name not in classes]:
            raise ValueError(
                f"path must hold the classes of {part} in train as well, got only there: {strange}"
            )
    drawn = {part: share for part, share in shares.items() if part not in found}
    parts: dict[str, Listed] = {part: [] for part in FOLDERS}
    for label, name in enumerate(classes):
        files = _shuffled(found["train"][name], generator)
        whole = len(files)
        for part, share in drawn.items():
            count = max(1, round(share * whole))
            parts[part] += [(file, label) for file in files[:count]]
            files = files[count:]
        if not files:
            raise ValueError(
                f"path must hold at least {len(drawn) + 1} pictures of each class, "
                f"got {whole} of {name!r} in {path}"
            )
        parts["train"] += [(file, label) for file in files]
        for part in found.keys() - {"train"}:
            parts[part] += [(file, label) for file in found[part].get(name, ())]
    return classes, {part: _shuffled(files, generator) for part, files in parts.items()}


def _folders(path: Path) -> list[Path]:
    return [one for one in sorted(path.iterdir()) if one.is_dir() and not one.name.startswith(HIDDEN)]


def _listed(path: Path) -> dict[str, list[Path]]:
    # the pictures beneath each folder of ``path``
    found = {one.name: sorted(one.rglob("*")) for one in _folders(path)}
    return {
        name: [
            file
            for file in files
            if file.suffix.lower() in ENDINGS
            and not any(part.startswith(HIDDEN) for part in file.relative_to(path).parts)
        ]
        for name, files in found.items()
    }


def _shuffled(files: list, generator: torch.Generator) -> list:
    return [files[index] for index in torch.randperm(len(files), generator=generator).tolist()]


# -- their pixels --------------------------------------------------------------------------------------------


def _rows(
    files: list[Path], size: tuple[int, int], broken: list[str], progress: bool
) -> Iterator[np.ndarray]:
    # the pictures in order, 3 x height x width; what cannot be read is added to ``broken``
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        read = pool.map(partial(_read, size=size), files)
        bar = tqdm(read, total=len(files), disable=not progress, leave=False)
        for file, row in zip(files, bar, strict=True):
            if row is None:
                broken.append(str(file))
            else:
                yield row
    if len(broken) == len(files):
        raise ValueError(f"path must hold readable pictures, got none of {len(files)} (first: {files[0]})")


def _read(file: Path, size: tuple[int, int]) -> np.ndarray | None:
    try:
        with Image.open(file) as opened:
            opened.draft("RGB", (2 * max(size),) * 2)  # of a JPEG no finer a scale than this is decoded
            image = ImageOps.exif_transpose(opened)
            if image.mode in ("I", "F"):  # as scientists write them: no scale is known
                return None
            if image.mode.startswith("I;16"):  # 16 bits of grey, which convert would cut off at 255
                image = Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
            image = image.convert("RGBA" if image.mode == "P" else "RGB").convert("RGB")
        fitted = ImageOps.fit(image, size[::-1], Image.Resampling.BILINEAR)
        return np.asarray(fitted).transpose(2, 0, 1)
    except Exception:  # whatever Pillow raises on a damaged file: OSError, SyntaxError, ValueError, its own
        return None


def _mapped(
    cache: Path, name: str, files: list[Path], size: tuple[int, int], progress: bool
) -> tuple[Tensor, list[str]]:
    # the pictures in a file of their bytes, named after what they are made from; beside it those left out
    stats = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    key = hashlib.sha256(json.dumps([size, stats]).encode()).hexdigest()[:16]
    stored, left_out = cache / f"{name}-{key}.uint8", cache / f"{name}-{key}.json"
    if not (stored.exists() and left_out.exists()):
        broken: list[str] = []
        with atomic_path(stored) as part, part.open("wb") as out:
            for row in _rows(files, size, broken, progress):
                out.write(row.tobytes())
            with atomic_path(left_out) as listing:
                listing.write_text(json.dumps(broken))
    total = stored.stat().st_size
    print(f"{total / 1e9:.1f} GB of pictures are streamed from {stored}")
    images = torch.from_file(str(stored), shared=False, size=total, dtype=torch.uint8)
    return images.view(-1, 3, *size), json.loads(left_out.read_text())


def _statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    # mean and std of each channel, in [0, 1], from counts of the 256 levels: no picture becomes a float
    counts = sum(
        torch.stack([channel.flatten().bincount(minlength=256) for channel in some.unbind(1)])
        for some in images.split(1000)
    )
    shares, levels = counts.double() / counts[0].sum(), torch.arange(256).double() / 255
    mean = shares @ levels
    std = (shares * (levels - mean[:, None]).square()).sum(1).sqrt().clamp_min(1 / 255)
    return tuple(mean.tolist()), tuple(std.tolist())
