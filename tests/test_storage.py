"""Sparse storage: files of the sizes the arithmetic says, and back to exactly the same tensors."""

import json
import math
import re
import struct

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers import models, profiling, pruning
from helpers.storage import STORAGES, pack, unpack

PACKED = [storage for storage in STORAGES if storage != "dense"]


def bits(tensor):
    return tensor.contiguous().view({2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()])


@pytest.mark.parametrize("storage", PACKED)
@given(
    shape=st.one_of(
        st.tuples(*[st.integers(1, 9)] * 2),
        st.tuples(st.integers(1, 6), st.sampled_from([1, 3, 4, 8]), *[st.integers(1, 3)] * 2),
    ),
    density=st.sampled_from([0.0, 0.01, 0.3, 0.5, 1.0]),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.float64]),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=60, deadline=None)
def test_every_bit_comes_back(storage, shape, density, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(shape, generator=generator).to(dtype)
    weight[torch.rand(shape, generator=generator) >= density] = 0
    weight.view(-1)[0] = -0.0  # a zero with a sign is not nothing
    written, packed = pack({"weight": weight, "bias": torch.ones(3)}, storage)
    back = unpack(written, packed, storage)
    assert back.keys() == {"weight", "bias"}
    assert back["weight"].shape == weight.shape
    assert torch.equal(bits(back["weight"]), bits(weight))


def test_sizes_are_what_the_arithmetic_says():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(64, 100, generator=generator)
    weight[torch.rand(64, 100, generator=generator) < 0.9] = 0
    kept = int(weight.count_nonzero())

    def size(storage):
        return sum(tensor.nbytes for tensor in pack({"w": weight}, storage)[0].values())

    assert size("dense") == 64 * 100 * 4
    assert size("bitmask") == 64 * 100 // 8 + 4 * kept
    assert size("csr") == 64 * 4 + kept * (4 + 2)
    entropy = -0.9 * math.log2(0.9) - 0.1 * math.log2(
        0.1
    )  # bits per weight that a mask of density 0.1 really holds
    mask = pack({"w": weight}, "bitmask+zip")[0]["w|mask"].nbytes
    assert entropy * 6400 / 8 * 0.9 < mask < 6400 / 8


def test_two_of_four_is_half_the_values_and_a_bit_per_weight():
    weight = torch.randn(16, 32, 3, 3)
    pruned = torch.nn.Conv2d(32, 16, 3)
    pruned.weight.data = weight.clone()
    pruning.prune_two_of_four(pruned)
    written, packed = pack({"w": pruned.weight.detach()}, "2:4")
    assert (
        sum(tensor.nbytes for tensor in written.values()) == weight.numel() * (4 // 2) + weight.numel() // 8
    )
    assert torch.equal(unpack(written, packed, "2:4")["w"], pruned.weight)
    assert not pack({"w": weight}, "2:4")[1]  # three or four values in a group: it stays dense


@pytest.mark.parametrize("storage", STORAGES)
def test_a_pruned_models_file_loads_back_to_the_same_tensors(storage, tmp_path):
    model = models.build("tiny_convnet", width=0.5)
    pruning.prune_once(model, 0.9)
    path = models.save(model, tmp_path / "model.safetensors", storage=storage)
    back = models.load(path)
    for (name, a), b in zip(model.state_dict().items(), back.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert path.stat().st_size == profiling.file_bytes(model, storage=storage)


def test_summarize_reports_the_smallest_file_and_says_which():
    model = models.build("tiny_convnet")
    assert profiling.smallest_file(model) == ("dense", profiling.file_bytes(model))
    pruning.prune_once(model, 0.95)
    summary = profiling.summarize(model, repeats=3)
    table = profiling.storage_table(model).set_index("storage")["bytes"]
    assert summary["storage"] == table.idxmin() == "bitmask+zip"
    assert summary["bytes"] == table.min() < table["bitmask"] < table["dense"]
    assert (
        summary["nonzeros"] == sum(int(p.count_nonzero()) for p in model.parameters()) < summary["parameters"]
    )


def test_unknown_storage_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"storage must be 'dense', .*got 'rar'"):
        models.save(models.build("tiny_convnet", width=0.25), tmp_path / "m.safetensors", storage="rar")


def _edit_header(path, change):
    raw = path.read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8 : 8 + length])
    change(header["__metadata__"])
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + raw[8 + length :])


@pytest.mark.parametrize("storage", PACKED)
@pytest.mark.parametrize(
    "harm", ["shape", "terabytes", "negative", "flat", "dtype", "other dtype", "storage", "missing"]
)
def test_packed_weights_that_do_not_fit_are_refused_by_name(storage, harm, tmp_path):
    model = models.build("tiny_convnet", width=0.25)
    pruning.prune_once(model, 0.9)
    pruning.prune_two_of_four(model)
    path = models.save(model, tmp_path / "model.safetensors", storage=storage)

    def change(metadata):
        packed = json.loads(metadata["packed"])
        first = next(iter(packed))
        if harm == "missing":
            del packed[first]["shape"]
        elif "dtype" in harm:
            packed[first]["dtype"] = "load" if harm == "dtype" else "int32"
        elif harm == "flat":
            packed[first]["shape"] = []
        elif harm == "storage":
            metadata["storage"] = "rar"
        else:
            packed[first]["shape"][0] = {
                "shape": packed[first]["shape"][0] + 8,
                "terabytes": 2**40,
                "negative": -1,
            }[harm]
        metadata["packed"] = json.dumps(packed)

    _edit_header(path, change)
    with pytest.raises(models.CheckpointError, match=r"model\.safetensors"):
        models.load(path)


@pytest.mark.parametrize("storage", PACKED)
def test_half_a_piece_is_refused_by_name(storage):
    layer = torch.nn.Conv2d(32, 16, 3)
    pruning.prune_two_of_four(layer)
    written, packed = pack({"w": layer.weight.detach()}, storage)
    assert packed
    for name, piece in written.items():
        with pytest.raises(ValueError, match=rf"{re.escape(name)} has \d+ bytes instead of"):
            unpack(written | {name: piece[: len(piece) // 2]}, packed, storage)


@pytest.mark.parametrize("storage", PACKED)
def test_flipped_bits_are_noticed(storage, tmp_path):
    model = models.build("tiny_convnet", width=0.25)
    pruning.prune_once(model, 0.9)
    path = models.save(model, tmp_path / "model.safetensors", storage=storage)
    good = path.read_bytes()
    start = 8 + struct.unpack("<Q", good[:8])[0]
    for place in range(start, len(good), (len(good) - start) // 20):
        path.write_bytes(good[:place] + bytes([good[place] ^ 16]) + good[place + 1 :])
        with pytest.raises(models.CheckpointError):
            models.load(path)


def test_a_weight_of_one_column_comes_back_whatever_its_strides_say():
    """A dimension of size 1 may have any stride, and the tensor still counts as contiguous."""
    weight = torch.arange(6.0)[:, None].as_strided((6, 1), (1, 7))
    assert weight.is_contiguous()
    for storage in STORAGES:
        written, packed = pack({"weight": weight}, storage)
        assert torch.equal(unpack(written, packed, storage)["weight"], weight)
