"""Checkpoints that are truncated, bit-flipped, foreign or made to harm: refused by name, no code run, no memory taken."""

import contextlib
import functools
import json
import os
import pickle
import random
import struct
import subprocess
import sys
import textwrap
import zlib

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from helpers import models, pruning
from helpers.data import CIFAR10_FOLDER, DataError, load_data
from helpers.export import logits
from helpers.files import CheckpointError, digest, read_safetensors
from helpers.storage import unpack
from helpers.training import fit

STORAGES = ("dense", "bitmask+zip")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A model, the same packed, and a checkpoint of fit: path and bytes by kind."""
    folder = tmp_path_factory.mktemp("good")
    model = models.build("tiny_convnet", width=0.1)
    pruning.prune_once(model, 0.5)
    paths = {
        storage: models.save(model, folder / f"{storage}.safetensors", storage=storage)
        for storage in STORAGES
    }
    paths["fit"] = folder / "fit.safetensors"
    resume(paths["fit"])
    return {kind: path.read_bytes() for kind, path in paths.items()}


digits = functools.cache(lambda: load_data("digits", train_limit=64))


def resume(path):
    torch.manual_seed(0)
    model = models.build("tiny_convnet", width=0.1)
    fit(model, digits(), epochs=1, batch_size=64, checkpoint=path, progress=False)
    return model


def read(kind, path):
    return resume(path) if kind == "fit" else models.load(path)


def attempt(kind, path):
    """The weights, or else what the refusal said."""
    try:
        return weights(read(kind, path)), None
    except ValueError as error:  # CheckpointError is one
        return None, str(error)


def weights(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("kind", [*STORAGES, "fit"])
def test_no_flipped_bit_and_no_cut_goes_unnoticed(files, kind, tmp_path):
    """Anywhere in the file, its header most of all: refused by name, or (where the header has room) the same network."""
    path, good, draws = tmp_path / "harmed.safetensors", files[kind], random.Random(0)
    path.write_bytes(good)
    expected = weights(read(kind, path))
    header = 8 + struct.unpack("<Q", good[:8])[0]
    trials = 60 if kind == "fit" else 200
    places = [draws.randrange(header if number % 2 else len(good)) for number in range(trials)]
    harmed = [
        good[:place] + bytes([good[place] ^ 1 << draws.randrange(8)]) + good[place + 1 :] for place in places
    ]
    harmed += [good[: draws.randrange(len(good))] for _ in range(20)] + [
        good + b"\0",
        good[:-1],
        good[8:],
        b"",
        good[:8],
    ]
    refused = 0
    for content in harmed:
        path.write_bytes(content)
        found, said = attempt(kind, path)
        if said:
            assert "harmed.safetensors" in said
            assert "Way out" in said or "belongs to a run with" in said
            refused += 1
        else:
            assert all(torch.equal(expected[name], tensor) for name, tensor in found.items())
    assert refused > 0.9 * len(harmed)


class Payload:
    """Runs code when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("legacy", [True, False])
def test_a_pickle_under_another_name_is_refused_and_runs_nothing(legacy, tmp_path):
    path, marker = tmp_path / "model.safetensors", tmp_path / "was here"
    torch.save(
        {"weight": torch.zeros(2), "harm": Payload(marker)}, path, _use_new_zipfile_serialization=not legacy
    )
    for call in (models.load, resume):
        with pytest.raises(
            CheckpointError, match=r"model\.safetensors is truncated, altered or not a safetensors file"
        ):
            call(path)
    path.write_bytes(pickle.dumps(Payload(marker)))
    for call in (models.load, resume):
        with pytest.raises(CheckpointError, match=r"model\.safetensors is"):
            call(path)
    assert not marker.exists()
    pickle.loads(path.read_bytes())  # it would have
    assert marker.exists()


def test_a_hostile_cifar10_is_refused_before_it_is_unpickled(tmp_path, cifar10):
    """CIFAR-10 is published as pickles: each is read only after its MD5 has been found to be the published one."""
    from tests.conftest import CIFAR10

    folder, marker = tmp_path / CIFAR10_FOLDER, tmp_path / "was here"
    folder.mkdir()
    for path in (CIFAR10 / CIFAR10_FOLDER).iterdir():
        (folder / path.name).symlink_to(path)
    (folder / "test_batch").unlink()
    (folder / "test_batch").write_bytes(pickle.dumps(Payload(marker)))
    with pytest.raises(DataError, match=r"test_batch .*altered"):
        load_data("cifar10", root=tmp_path)
    assert not marker.exists()


def signed(path, tensors, metadata, **changes):
    """Write a file whose checksum is right, whatever it says."""
    metadata = {**metadata, **changes}
    if "record" in metadata:
        metadata["sha256"] = digest(tensors, metadata["record"])
    else:
        whole = tensors
        if "packed" in metadata:
            with contextlib.suppress(Exception):
                whole = unpack(tensors, json.loads(metadata["packed"]), metadata["storage"])
        metadata["sha256"] = digest(whole, metadata["recipe"] + metadata.get("packed", ""))
    save_file(tensors, path, metadata)


def mutations(value, draws):
    """Yield the JSON value with one thing in it replaced, removed or added."""
    hostile = [
        None,
        True,
        -1,
        0,
        1e308,
        float("nan"),
        2**63,
        "",
        "__class__",
        [],
        {},
        [[]],
        "a." * 2_000,
        10**30,
        [10**9] * 4,
    ]
    places = []

    def walk(node):
        for key, below in (
            node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
        ):
            places.append((node, key))
            walk(below)

    walk(value)
    for node, key in draws.sample(places, min(len(places), 60)):
        before = node[key]
        for other in draws.sample(hostile, 2):
            node[key] = other
            yield json.dumps(value)
        node[key] = before
        if isinstance(node, dict):
            node[f"{key}.x"] = node.pop(key)
            yield json.dumps(value)
            node[key] = node.pop(f"{key}.x")


@pytest.mark.parametrize(
    ("kind", "part"),
    [("dense", "recipe"), ("bitmask+zip", "recipe"), ("bitmask+zip", "packed"), ("fit", "record")],
)
def test_a_signed_header_that_lies_is_refused_by_name(files, kind, part, tmp_path):
    path = tmp_path / "lying.safetensors"
    path.write_bytes(files[kind])
    metadata, tensors = read_safetensors(path)
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    expected = weights(read(kind, path))
    truth = json.loads(metadata[part])
    if kind == "fit":  # of the rows of finished epochs nothing can be known
        lies = [
            f'{{"settings": {lie}, "history": {json.dumps(truth["history"])}}}'
            for lie in mutations(truth["settings"], random.Random(0))
        ]
    else:
        lies = list(mutations(truth, random.Random(0)))
    lies += [
        "",
        "[]",
        "null",
        "1",
        '"x"',
        "{}",
        "[" * 100_000,
        "{" * 9,
        '{"settings": {}, "history": 3}',
        '{"settings": 3, "history": []}',
    ]
    refused = 0
    for lie in lies:
        signed(path, tensors, metadata, **{part: lie})
        found, said = attempt(kind, path)
        if said:
            assert "lying.safetensors" in said
            refused += 1
        else:  # a setting that changes no weight, such as a stride
            assert all(torch.equal(expected[name], tensor) for name, tensor in found.items())
    assert refused > 20


def test_integers_in_the_place_of_weights_are_refused(files, tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(files["dense"])
    metadata, tensors = read_safetensors(path)
    tensors = {
        name: tensor.view(torch.int32) if tensor.dtype == torch.float32 else tensor.clone()
        for name, tensor in tensors.items()
    }
    signed(path, tensors, metadata)  # the same bytes, so the same checksum
    with pytest.raises(CheckpointError, match="recipe does not describe the weights"):
        models.load(path)


def header(path, claims, size=0):
    """Write a safetensors file with these header entries, and ``size`` bytes behind it that take no room on the disk."""
    text = json.dumps(claims).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + size)


LIMITED = """
    import resource, sys, torch
    from pathlib import Path
    from helpers import models
    torch.ones(1000) + 1
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 300 * 2**20, resource.RLIM_INFINITY))
    for path in sys.argv[1:]:
        try:
            models.load(path)
        except models.CheckpointError as error:
            print(Path(path).name in str(error), type(error).__name__)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited on Linux only")
def test_headers_that_claim_terabytes_take_no_memory(files, tmp_path):
    """In a process that may take 300 MB more than PyTorch itself."""
    paths = [tmp_path / f"{number}.safetensors" for number in range(6)]
    paths[0].write_bytes(struct.pack("<Q", 2**60) + b"{}")  # a header of an exabyte
    claim = {"dtype": "F32", "shape": [2**20, 2**20], "data_offsets": [0, 2**42]}
    header(paths[1], {"weight": claim})  # a tensor of 4 TB that is not there
    header(paths[2], {"weight": claim}, 2**42)  # and one that is, on a file system that stores no zeros
    paths[3].write_bytes(files["dense"])
    metadata, tensors = read_safetensors(paths[3])
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    recipe = json.loads(metadata["recipe"])
    signed(
        paths[3],
        tensors,
        metadata,
        recipe=json.dumps(recipe | {"name": "vgg19_imagenet", "width": 16.0, "num_classes": 10**6}),
    )
    paths[4].write_bytes(files["bitmask+zip"])
    metadata, tensors = read_safetensors(paths[4])
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    packed = json.loads(metadata["packed"])
    first = next(iter(packed))
    packed[first]["shape"] = [2**14, 2**14]  # 1 GiB of weights, all zero: a few kilobytes of file
    pieces = {"mask": bytes(2**28 // 8), "values": b""}
    for piece, content in pieces.items():
        tensors[f"{first}|{piece}"] = torch.from_numpy(
            np.frombuffer(zlib.compress(content, 9), np.uint8).copy()
        )
    save_file(tensors, paths[4], {**metadata, "packed": json.dumps(packed)})
    many = {f"t{number}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for number in range(100_000)}
    header(paths[5], many)
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(LIMITED), *paths], capture_output=True, text=True, timeout=100
    )
    assert done.stdout.splitlines() == ["True CheckpointError"] * len(paths), done.stderr[-2000:]


@pytest.mark.parametrize("suffix", [".onnx", ".tflite", ".pte"])
def test_an_exported_file_that_no_runtime_can_read_is_named(suffix, tmp_path):
    path = tmp_path / f"network{suffix}"
    path.write_bytes(b"x" * 300)
    with pytest.raises(ValueError, match=rf"network{suffix} cannot be read by .*Way out: write it anew"):
        logits(path, digits().test)
