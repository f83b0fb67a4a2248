"""How the weights of a sparse network lie in a file: a zero need not cost four bytes, but where it stands must be said.

``models.save(model, path, storage=...)`` writes these, ``models.load`` reads them back to exactly the same tensors.
Every tensor is stored as asked where that is smaller than dense, and dense elsewhere (biases, normalisation, layers without zeros).

============  ====================================================================================================
dense         every weight, zeros included
zip           all bytes, the first of every weight, then the second, and so on (byte planes), deflated
bitmask       one bit per weight says where it is not zero, then the values
bitmask+zip   the same, mask and byte planes of the values deflated (Huffman codes; compare Han 2016, section 4)
csr           compressed sparse rows: a row per output, 16 bits of column per value (32 where a row is longer)
2:4           two values of every four neighbours along the inputs and 4 bits of position: what GPUs compute with directly
              (Mishra 2021, section 3)
============  ====================================================================================================
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from helpers import checks
from helpers.files import LARGEST

STORAGES = ("dense", "zip", "bitmask", "bitmask+zip", "csr", "2:4")

Pieces = dict[str, np.ndarray]
_FLOATS = ("float32", "float16", "bfloat16", "float64")
_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def pack(tensors: dict[str, Tensor], storage: str) -> tuple[dict[str, Tensor], dict[str, dict]]:
    """Return the tensors to write (packed ones as pieces, ``name|piece``, uint8) and {name: {dtype, shape}} of the packed."""
    checks.choice("storage", storage, STORAGES)
    written, packed = {}, {}
    for name, tensor in tensors.items():
        weights = tensor.ndim > 1 and tensor.is_floating_point() and tensor.element_size() in _INTEGERS
        pieces = _ENCODERS[storage](tensor) if weights and storage != "dense" else None
        if pieces is None or sum(piece.nbytes for piece in pieces.values()) >= tensor.nbytes:
            written[name] = tensor
            continue
        packed[name] = {"dtype": str(tensor.dtype).removeprefix("torch."), "shape": list(tensor.shape)}
        written |= {
            f"{name}|{key}": torch.from_numpy(np.frombuffer(piece.tobytes(), np.uint8).copy())
            for key, piece in pieces.items()
        }
    return written, packed


def unpack(written: dict[str, Tensor], packed: dict[str, dict], storage: str) -> dict[str, Tensor]:
    """Return the tensors that ``pack`` was given.

    Raises:
        ValueError: the pieces do not fit what ``packed`` says, or it says more than 2 GiB.
    """
    checks.choice("storage", storage, STORAGES)
    shapes = {name: tuple(int(size) for size in about["shape"]) for name, about in packed.items()}
    if (
        any(size < 0 for shape in shapes.values() for size in shape)
        or sum(8 * math.prod(shape) for shape in shapes.values()) > 2 * LARGEST
    ):
        raise ValueError("its header claims more than 2 GiB of weights")
    if any(len(shape) < 2 for shape in shapes.values()) or any(
        about["dtype"] not in _FLOATS for about in packed.values()
    ):
        raise ValueError(
            f"packed tensors have two or more dimensions and one of the types {', '.join(_FLOATS)}"
        )
    tensors = {name: tensor for name, tensor in written.items() if name.rpartition("|")[0] not in packed}
    for name, shape in shapes.items():
        dtype = getattr(torch, packed[name]["dtype"])
        pieces = {
            key.removeprefix(f"{name}|"): tensor.numpy()
            for key, tensor in written.items()
            if key.startswith(f"{name}|")
        }
        bits = _DECODERS[storage](
            pieces, shape, torch.zeros((), dtype=_INTEGERS[dtype.itemsize]).numpy().dtype
        )
        tensors[name] = torch.from_numpy(np.ascontiguousarray(bits)).view(dtype).view(shape)
    return tensors


def _bits(tensor: Tensor) -> np.ndarray:
    """Return the weights' bit patterns as a flat array of integers: only +0.0 is 0, so that nothing is lost."""
    return tensor.contiguous().view(_INTEGERS[tensor.element_size()]).numpy().reshape(-1)


# -- byte planes and Huffman codes -----------------------------------------------------------------------------------


def _deflate(data: np.ndarray, strategy: int = zlib.Z_DEFAULT_STRATEGY) -> np.ndarray:
    coder = zlib.compressobj(9, strategy=strategy)
    return np.frombuffer(coder.compress(data.tobytes()) + coder.flush(), np.uint8)


def _inflate(data: np.ndarray, size: int) -> np.ndarray:
    try:
        raw = zlib.decompressobj().decompress(data.tobytes(), size + 1)
    except zlib.error as error:
        raise ValueError(f"a piece cannot be inflated ({error})") from error
    return _sized(np.frombuffer(raw, np.uint8), size)


def _planes(values: np.ndarray) -> np.ndarray:
    """Deflate the values plane by plane: sign and exponent repeat and get short codes, the mantissa's bytes do not."""
    return _deflate(
        np.ascontiguousarray(values.view(np.uint8).reshape(len(values), values.itemsize).T),
        zlib.Z_HUFFMAN_ONLY,
    )


def _from_planes(piece: np.ndarray, count: int, integer: np.dtype) -> np.ndarray:
    planes = _inflate(piece, count * integer.itemsize).reshape(integer.itemsize, count)
    return np.ascontiguousarray(planes.T).view(integer).reshape(-1)


def _sized(piece: np.ndarray, size: int) -> np.ndarray:
    if piece.nbytes != size:
        raise ValueError(f"a piece has {piece.nbytes} bytes instead of {size}")
    return piece


def _zip(tensor: Tensor) -> Pieces:
    return {"zip": _planes(_bits(tensor))}


def _unzip(pieces: Pieces, shape: tuple[int, ...], integer: np.dtype) -> np.ndarray:
    return _from_planes(pieces["zip"], math.prod(shape), integer)


# -- bitmask ---------------------------------------------------------------------------------------------------------


def _bitmask(tensor: Tensor) -> Pieces:
    bits = _bits(tensor)
    return {"mask": np.packbits(bits != 0), "values": bits[bits != 0]}


def _bitmask_zip(tensor: Tensor) -> Pieces:
    pieces = _bitmask(tensor)
    return {"mask": _deflate(pieces["mask"]), "values": _planes(pieces["values"])}


def _place(mask: np.ndarray, values: np.ndarray, integer: np.dtype) -> np.ndarray:
    bits = np.zeros(len(mask), integer)
    bits[mask] = values
    return bits


def _from_bitmask(pieces: Pieces, shape: tuple[int, ...], integer: np.dtype) -> np.ndarray:
    count = math.prod(shape)
    mask = np.unpackbits(_sized(pieces["mask"], -(-count // 8)), count=count).astype(bool)
    return _place(mask, _sized(pieces["values"], int(mask.sum()) * integer.itemsize).view(integer), integer)


def _from_bitmask_zip(pieces: Pieces, shape: tuple[int, ...], integer: np.dtype) -> np.ndarray:
    count = math.prod(shape)
    mask = np.unpackbits(_inflate(pieces["mask"], -(-count // 8)), count=count).astype(bool)
    return _place(mask, _from_planes(pieces["values"], int(mask.sum()), integer), integer)


# -- compressed sparse rows ------------------------------------------------------------------------------------------


def _column_type(shape: tuple[int, ...]) -> type:
    return np.uint16 if math.prod(shape[1:]) <= 2**16 else np.uint32


def _csr(tensor: Tensor) -> Pieces:
    matrix = _bits(tensor).reshape(len(tensor), -1)
    rows, columns = matrix.nonzero()
    counts = np.bincount(rows, minlength=len(matrix)).astype(np.uint32)
    return {
        "counts": counts,
        "columns": columns.astype(_column_type(tuple(tensor.shape))),
        "values": matrix[rows, columns],
    }


def _from_csr(pieces: Pieces, shape: tuple[int, ...], integer: np.dtype) -> np.ndarray:
    counts = _sized(pieces["counts"], 4 * shape[0]).view(np.uint32).astype(np.int64)
    total, width = int(counts.sum()), math.prod(shape[1:])
    columns = (
        _sized(pieces["columns"], total * np.dtype(_column_type(shape)).itemsize)
        .view(_column_type(shape))
        .astype(np.int64)
    )
    if total and columns.max() >= width:
        raise ValueError("a column lies outside its row")
    bits = np.zeros(math.prod(shape), integer)
    bits[np.repeat(np.arange(shape[0]), counts) * width + columns] = _sized(
        pieces["values"], total * integer.itemsize
    ).view(integer)
    return bits


# -- two of four -----------------------------------------------------------------------------------------------------


def _two_of_four(tensor: Tensor) -> Pieces | None:
    if tensor.shape[1] % 4:
        return None
    groups = _bits(tensor.movedim(1, -1)).reshape(-1, 4)
    if ((groups != 0).sum(1) > 2).any():
        return None
    where = (groups == 0).argsort(axis=1, kind="stable")[:, :2].astype(np.uint8)
    codes = where[:, 0] | where[:, 1] << 2
    codes = np.append(codes, np.zeros(len(codes) % 2, np.uint8))
    return {
        "positions": codes[::2] | codes[1::2] << 4,
        "values": np.take_along_axis(groups, where.astype(np.int64), 1),
    }


def _from_two_of_four(pieces: Pieces, shape: tuple[int, ...], integer: np.dtype) -> np.ndarray:
    count = math.prod(shape) // 4
    bytes_ = _sized(pieces["positions"], -(-count // 2))
    codes = np.stack([bytes_ & 15, bytes_ >> 4], 1).reshape(-1)[:count]
    where = np.stack([codes & 3, codes >> 2], 1).astype(np.int64)
    groups = np.zeros((count, 4), integer)
    np.put_along_axis(
        groups, where, _sized(pieces["values"], 2 * count * integer.itemsize).view(integer).reshape(-1, 2), 1
    )
    return np.moveaxis(groups.reshape(shape[0], *shape[2:], shape[1]), -1, 1)


_ENCODERS: dict[str, Callable[[Tensor], Pieces | None]] = {
    "zip": _zip, "bitmask": _bitmask, "bitmask+zip": _bitmask_zip, "csr": _csr, "2:4": _two_of_four,
}  # fmt: skip
_DECODERS: dict[str, Callable[[Pieces, tuple[int, ...], np.dtype], np.ndarray]] = {
    "zip": _unzip, "bitmask": _from_bitmask, "bitmask+zip": _from_bitmask_zip, "csr": _from_csr, "2:4": _from_two_of_four,
}  # fmt: skip
