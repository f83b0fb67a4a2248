"""What lesson 07 shows, on few pictures and with its small student: the road from a folder to files that are chosen from."""

import warnings

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from helpers import export, models, pruning, report
from helpers.data import HOME, from_folder
from helpers.evaluation import evaluate, predict, recalibrate
from helpers.training import fit


def cell(start):
    """What the lesson's own cell that begins so defines."""
    notebook = nbformat.read(HOME / "notebooks" / "07_your_own_network.ipynb", as_version=4)
    names = {"np": np, "Image": Image, "nn": torch.nn, "torch": torch}
    (source,) = [one.source for one in notebook.cells if one.source.startswith(start)]
    exec(source.partition("\n\n\ntorch.manual_seed")[0], names)
    return names


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder, drawn, rng = tmp_path_factory.mktemp("patterns"), cell("KINDS"), np.random.default_rng(0)
    for kind in drawn["KINDS"]:
        (folder / kind).mkdir()
        for number in range(100):
            mode = ("RGB", "L", "RGBA")[number % 3]
            drawn["draw"](kind, rng).convert(mode).save(folder / kind / f"{number}.png")
    (folder / "dots" / "broken.png").write_bytes(b"this was never a picture")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        data = from_folder(folder, pixels=48, progress=False)
    assert "1 of 601 files cannot be read" in str(told[0].message)
    return data


def fresh():
    names = cell("def block")
    names["data"] = type("Data", (), {"classes": "abcdef"})
    return names["make_small"]()


@pytest.fixture(scope="module")
def network(data):
    torch.manual_seed(0)
    network = fresh()
    fit(network, data, epochs=8, batch_size=32, lr=0.05, progress=False)
    return network


def test_the_patterns_can_be_told_apart(network, data):
    assert float(evaluate(network, data.validation)) > 0.5  # one in six by chance


def test_recalibrated_a_network_with_fewer_channels_is_better_than_as_it_fell_out(network, data):
    smaller = pruning.prune_channels(network, data.train.images[:1].float(), 0.5)
    found = [float(evaluate(model, data.train)) for model in (smaller, recalibrate(smaller, data.train))]
    assert found[1] > found[0] + 0.08


def test_what_was_changed_comes_back_into_a_fresh_instance(network, data, tmp_path):
    smaller = pruning.prune_channels(network, data.train.images[:1].float(), 0.5)
    back = models.load(models.save(smaller, tmp_path / "own.safetensors"), into=fresh())
    same = zip(smaller.state_dict().items(), back.state_dict().items(), strict=True)
    assert all(one[0] == other[0] and torch.equal(one[1], other[1]) for one, other in same)


def test_int8_takes_a_third_of_the_bytes_or_less_and_is_what_ships(network, data, tmp_path):
    known = data.train.take(slice(0, 100))
    paths = {"network": export.to_onnx(network, tmp_path / "own.onnx", data.validation)}
    paths["int8"] = export.quantize_onnx(paths["network"], tmp_path / "int8.onnx", known, agreement=0.8)
    rows = [
        (name, path.stat().st_size, *vars(export.accuracy(path, data.validation)).values())
        for name, path in paths.items()
    ]
    table = pd.DataFrame(rows, columns=["network", "bytes", "correct", "total"])
    assert table["bytes"][1] < table["bytes"][0] / 3
    assert report.choose(table, 1.0, tolerance=0.1)["network"] == "int8"
    assert report.choose(table, table["bytes"][1] / 2e6) is None
    answers = export.logits(paths["network"], data.validation).argmax(1)
    assert torch.equal(answers, predict(network, data.validation).argmax(1))
