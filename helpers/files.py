"""Files that are there whole or not at all, and safetensors with a checksum: nothing in them is executable.

Knows nothing about networks: ``helpers.models`` says what the tensors mean.
"""

import glob
import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from helpers.types import AnyPath, by_name, checked

LARGEST = 2**31  # bytes of one network in memory: what a file's header may claim
WAY_OUT = "Way out: fetch the file anew, or train and save it again."


class CheckpointError(ValueError):
    """A model file is missing, truncated, altered or not one of ours; the message names it and a way out."""


# -- safetensors ---------------------------------------------------------------------------------------------


@checked
def read_safetensors(path: AnyPath) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Read a safetensors file's metadata, {name: text}, and its tensors, {name: tensor}.

    Raises:
        CheckpointError: the file is missing, truncated or not safetensors.
    """
    with _opened(path) as file:
        names = file.keys()  # safe_open cannot be iterated
        return file.metadata() or {}, {name: file.get_tensor(name) for name in names}


@checked
def write_safetensors(path: AnyPath, tensors: by_name(Tensor), metadata: by_name(str)) -> None:
    """Write tensors and metadata to a safetensors file, whole or not at all.

    Raises:
        OSError: the file cannot be written; an older file of that name is left as it was.
    """
    with atomic_path(path) as part:
        try:
            save_file(tensors, part, metadata)
        except SafetensorError as error:  # a full disk, too
            raise OSError(str(error)) from error


@checked
def fingerprint(path: AnyPath) -> str:
    """Say which weights a file holds, from its header alone: "sha256:" and ten digits of its checksum.

    Raises:
        CheckpointError: the file is missing, damaged, or not one of ours.
    """
    with _opened(path) as file:
        found = (file.metadata() or {}).get("sha256")
    if not found:
        raise CheckpointError(f"{path} holds no checksum: it was not written by models.save. {WAY_OUT}")
    return f"sha256:{found[:10]}"


@checked
def digest(tensors: by_name(Tensor), text: str = "") -> str:
    """Return the SHA-256, in hexadecimal, of ``text`` and then of every tensor's name and bytes, by name."""
    sha = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        sha.update(name.encode())
        sha.update(tensors[name].contiguous().reshape(-1).view(torch.uint8).numpy())
    return sha.hexdigest()


@contextmanager
def _opened(path: Path) -> Iterator[safe_open]:
    try:
        if path.stat().st_size > 8 * LARGEST:
            raise ValueError(f"{path.stat().st_size:,} bytes are more than any model of this project has")
        with safe_open(path, framework="pt") as file:
            yield file
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist. {WAY_OUT}") from None
    except (SafetensorError, OSError, ValueError) as error:
        said = f"{path} is truncated, altered or not a safetensors file ({error}). {WAY_OUT}"
        raise CheckpointError(said) from error


# -- whole or not at all -------------------------------------------------------------------------------------


@checked
@contextmanager
def atomic_path(path: AnyPath) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` that takes its place when the block ends well.

    What was written there is flushed to disk before it is renamed, so a crash, a kill or a full disk leaves
    either the old file or the new one, never half of one. What killed processes left half-written beside it
    is removed.

    Raises:
        OSError: the folder cannot be created or written, or the disk is full; the message names ``path``.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with _named(path, part):
            path.parent.mkdir(parents=True, exist_ok=True)
            for left in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
                writer = left.name.split(".")[-2]
                if writer.isdigit() and not psutil.pid_exists(int(writer)):
                    left.unlink(missing_ok=True)
            part.touch()
            mode = part.stat().st_mode
            yield part
            part.chmod(mode)  # a writer may have made the file anew, for nobody else to read
            with part.open("rb+") as file:
                os.fsync(file.fileno())
            part.replace(path)
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


@checked
def keep(path: AnyPath, content: bytes) -> None:
    """Write ``content`` to ``path``, whole or not at all; if it lies there already, nothing is written.

    Raises:
        OSError: the folder cannot be created or written, or the disk is full; the message names ``path``.
    """
    if not path.exists() or path.read_bytes() != content:
        with atomic_path(path) as part:
            part.write_bytes(content)


@checked
def writable(path: AnyPath) -> None:
    """Raise now what ``atomic_path`` would raise after hours of training: make the folder, and a file in it.

    Raises:
        OSError: the folder cannot be created or written; the message names ``path``.
    """
    with _named(path, path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path.parent).close()


@contextmanager
def _named(path: Path, part: Path) -> Iterator[None]:
    # an OSError of writing path says so; one about another file, raised in the same block, passes as it is
    try:
        yield
    except OSError as error:
        name = Path(error.filename or part)
        if name not in (part, *path.parents) and part not in name.parents:
            raise
        reason = error.strerror or str(error)
        text = f"{path} could not be written ({reason}); what was there before is still there"
        raise (OSError(error.errno, text) if error.errno else OSError(text)) from error
