"""How the weights of a sparse network lie in a file: a zero need not take four bytes, if its place is said.

``models.save(model, path, storage=...)`` writes these, ``models.load`` reads them back to exactly the same
tensors. Every tensor is stored as asked where that is smaller than dense, and dense elsewhere (biases,
normalisation, layers without zeros).

============  ================================================================================================
dense         every weight, zeros included
zip           all bytes, the first of every weight, then the second, and so on (byte planes), deflated
bitmask       one bit per weight says where it is not zero, then the values
bitmask+zip   the same, mask and byte planes deflated (Huffman codes; compare Han 2016, section 4)
csr           compressed sparse rows: a row per output, 16 bits of column per value (32 where a row is longer)
2:4           two values of every four neighbours along the inputs and 4 bits of position: what GPUs compute
              with directly (Mishra 2021, section 3)
============  ================================================================================================
"""

import functools
import math
import zlib
from collections.abc import Callable
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from helpers.files import LARGEST
from helpers.types import by_name, checked, shown

Storage = Literal["dense", "zip", "bitmask", "bitmask+zip", "csr", "2:4"]
STORAGES = get_args(Storage)

Index = dict[str, np.ndarray]  # pieces that say where the values stand
Read = Callable[[str, Any, int], np.ndarray]  # (a piece, its type, how many) -> its numbers, that many
_FLOATS = ("float32", "float16", "bfloat16", "float64")
_EVERYWHERE = slice(None)


@checked
def pack(tensors: by_name(Tensor), storage: Storage) -> tuple[dict[str, Tensor], dict[str, dict]]:
    """Return the tensors to write, packed ones as uint8 pieces ``name|piece``, and {name: {dtype, shape}}."""
    written, packed = {}, {}
    for name, tensor in tensors.items():
        dtype = str(tensor.dtype).removeprefix("torch.")
        weights = tensor.ndim > 1 and dtype in _FLOATS and storage != "dense"
        pieces = _pieces(tensor, storage) if weights else {}
        if not weights or sum(piece.nbytes for piece in pieces.values()) >= tensor.nbytes:
            written[name] = tensor
            continue
        packed[name] = {"dtype": dtype, "shape": list(tensor.shape)}
        for key, piece in pieces.items():
            written[f"{name}|{key}"] = torch.from_numpy(np.frombuffer(piece.tobytes(), np.uint8).copy())
    return written, packed


@checked
def unpack(written: by_name(Tensor), packed: by_name(dict), storage: Storage) -> dict[str, Tensor]:
    """Return the tensors that ``pack`` was given.

    Raises:
        ValueError: the pieces do not fit what ``packed`` says, or it says more than 2 GiB.
    """
    shapes = {name: tuple(int(size) for size in about["shape"]) for name, about in packed.items()}
    for name, shape in shapes.items():
        if len(shape) < 2 or min(shape) < 0 or packed[name]["dtype"] not in _FLOATS:
            raise ValueError(f"packed must hold weights of two or more dimensions, got {shown(packed[name])}")
    if sum(8 * math.prod(shape) for shape in shapes.values()) > 2 * LARGEST:
        raise ValueError("packed must hold at most 2 GiB of weights")
    tensors = {name: tensor for name, tensor in written.items() if name.rpartition("|")[0] not in packed}
    for name, shape in shapes.items():
        dtype = getattr(torch, packed[name]["dtype"])
        _, find, deflated, key = _LAYOUTS[storage]
        read = functools.partial(_read, written, name, deflated)
        places = find(read, shape)
        count = math.prod(shape) if places is _EVERYWHERE else len(places)
        values = read(key, np.uint8, count * dtype.itemsize)
        if deflated:
            values = np.ascontiguousarray(values.reshape(dtype.itemsize, count).T).reshape(-1)
        bits = np.zeros(math.prod(shape), f"i{dtype.itemsize}")
        bits[places] = values.view(bits.dtype)
        tensors[name] = torch.from_numpy(bits).view(dtype).view(shape)
    return tensors


def _pieces(tensor: Tensor, storage: str) -> Index:
    locate, _, deflated, key = _LAYOUTS[storage]
    # the weights' bit patterns as whole numbers: only +0.0 is 0, so that nothing is lost
    flat = tensor.contiguous().view(-1).view(torch.uint8).numpy().view(f"i{tensor.element_size()}")
    bits = flat.reshape(tensor.shape)
    index, places = locate(bits)
    values = bits.reshape(-1)[places]
    if not deflated:
        return {**index, key: values}
    # plane by plane: sign and exponent repeat and get short codes, the mantissa's bytes do not
    planes = values.view(np.uint8).reshape(len(values), values.itemsize).T
    index = {name: _deflate(piece) for name, piece in index.items()}
    return {**index, key: _deflate(planes, zlib.Z_HUFFMAN_ONLY)}


def _deflate(data: np.ndarray, strategy: int = zlib.Z_DEFAULT_STRATEGY) -> np.ndarray:
    coder = zlib.compressobj(9, strategy=strategy)
    return np.frombuffer(coder.compress(data.tobytes()) + coder.flush(), np.uint8)


def _read(written: dict, name: str, deflated: bool, piece: str, kind: Any, count: int) -> np.ndarray:
    found, size = written[f"{name}|{piece}"].numpy(), count * np.dtype(kind).itemsize
    if deflated:
        try:
            found = np.frombuffer(zlib.decompressobj().decompress(found.tobytes(), size + 1), np.uint8)
        except zlib.error as error:
            raise ValueError(f"{name}|{piece} cannot be inflated ({error})") from error
    if found.nbytes != size:
        raise ValueError(f"{name}|{piece} has {found.nbytes} bytes instead of {size}")
    return found.view(kind)


# -- where the values stand: in an array of bits, and as pieces of a file ------------------------------------


def _as_mask(bits: np.ndarray) -> tuple[Index, np.ndarray]:
    return {"mask": np.packbits(bits != 0)}, np.flatnonzero(bits)


def _from_mask(read: Read, shape: tuple[int, ...]) -> np.ndarray:
    count = math.prod(shape)
    return np.flatnonzero(np.unpackbits(read("mask", np.uint8, -(-count // 8)), count=count))


def _column_type(width: int) -> type:
    return np.uint16 if width <= 2**16 else np.uint32


def _as_rows(bits: np.ndarray) -> tuple[Index, np.ndarray]:
    places, width = np.flatnonzero(bits), math.prod(bits.shape[1:])
    rows, columns = np.divmod(places, width)
    counts = np.bincount(rows, minlength=len(bits)).astype(np.uint32)
    return {"counts": counts, "columns": columns.astype(_column_type(width))}, places


def _from_rows(read: Read, shape: tuple[int, ...]) -> np.ndarray:
    counts, width = read("counts", np.uint32, shape[0]), math.prod(shape[1:])
    columns = read("columns", _column_type(width), int(counts.sum()))
    if (columns >= width).any():
        raise ValueError("a column lies outside its row")
    return np.repeat(np.arange(shape[0]), counts) * width + columns


def _fours(shape: tuple[int, ...]) -> np.ndarray:
    # the places of four neighbours along the inputs, a row each
    return np.moveaxis(np.arange(math.prod(shape)).reshape(shape), 1, -1).reshape(-1, 4)


def _as_pairs(bits: np.ndarray) -> tuple[Index, np.ndarray | slice]:
    whole = {}, _EVERYWHERE  # no smaller than dense, so it stays dense
    if bits.shape[1] % 4:
        return whole
    fours = _fours(bits.shape)
    zero = bits.reshape(-1)[fours] == 0
    if (zero.sum(1) < 2).any():
        return whole
    where = zero.argsort(axis=1, kind="stable")[:, :2]
    codes = (where[:, 0] | where[:, 1] << 2).astype(np.uint8)
    codes = np.append(codes, np.zeros(len(codes) % 2, np.uint8))
    return {"positions": codes[::2] | codes[1::2] << 4}, np.take_along_axis(fours, where, 1).reshape(-1)


def _from_pairs(read: Read, shape: tuple[int, ...]) -> np.ndarray:
    count = math.prod(shape) // 4
    halves = read("positions", np.uint8, -(-count // 2))
    codes = np.stack([halves & 15, halves >> 4], 1).reshape(-1)[:count]
    where = np.stack([codes & 3, codes >> 2], 1).astype(np.int64)
    return np.take_along_axis(_fours(shape), where, 1).reshape(-1)


# by storage: how to say where the values stand, how to find them, are they deflated, their piece's name
_LAYOUTS: dict[str, tuple[Callable, Callable, bool, str]] = {
    "zip": (lambda bits: ({}, _EVERYWHERE), lambda read, shape: _EVERYWHERE, True, "zip"),
    "bitmask": (_as_mask, _from_mask, False, "values"),
    "bitmask+zip": (_as_mask, _from_mask, True, "values"),
    "csr": (_as_rows, _from_rows, False, "values"),
    "2:4": (_as_pairs, _from_pairs, False, "values"),
}
