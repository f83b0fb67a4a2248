import itertools

import pytest
import torch
from torch import nn

from helpers import models, profiling


def test_macs_and_parameters_worked_by_hand():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 10),
    )
    table = profiling.profile(model)
    assert list(table["layer"]) == ["0", "1", "2", "3", "4", "5"]
    assert list(table["macs"]) == [3 * 8 * 9 * 32 * 32, 0, 0, 0, 0, 80]
    assert list(table["parameters"]) == [3 * 8 * 9 + 8, 16, 0, 0, 0, 90]
    assert (
        table["bytes"].tolist()[1] == 4 * 32 + 8
    )  # scale, shift, mean, variance; and the int64 batch counter
    assert table["output_shape"][0] == (1, 8, 32, 32)
    assert list(table) == [
        "layer",
        "type",
        "output_shape",
        "parameters",
        "bytes",
        "macs",
    ]  # times only where they are asked for
    assert profiling.count_macs(model) == 3 * 8 * 9 * 1024 + 80
    assert profiling.count_macs(model, (4, 3, 16, 16)) == 4 * (3 * 8 * 9 * 256 + 80)


def test_vgg19_to_the_unit():
    model = models.build("vgg19")
    table = profiling.profile(model)
    assert table["macs"].sum() == profiling.count_macs(model) == 398_136_320
    assert table["parameters"].sum() == profiling.count_parameters(model) == 20_040_522


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_student", "tiny_convnet"])
def test_layers_add_up_to_the_whole(name):
    model = models.build(name)
    table = profiling.profile(model)
    assert table["macs"].sum() == profiling.count_macs(model)
    assert table["parameters"].sum() == profiling.count_parameters(model)


class Attending(nn.Module):
    """A class token and places of its own, PyTorch's attention, and a head that runs in train mode only."""

    def __init__(self):
        super().__init__()
        self.token, self.places = nn.Parameter(torch.zeros(1, 1, 16)), nn.Parameter(torch.zeros(1, 17, 16))
        self.patches, self.second = nn.Conv2d(3, 16, 8, stride=8), nn.Linear(16, 10)
        self.encoder = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.head = nn.Linear(16, 10)

    def forward(self, images):
        tokens = torch.cat([self.token.expand(len(images), -1, -1), self.patches(images).flatten(2).mT], 1)
        tokens = self.encoder(tokens + self.places)[:, 0]
        return (self.head(tokens), self.second(tokens)) if self.training else self.head(tokens)


@pytest.mark.parametrize("latency", [False, True])
def test_attention_worked_by_hand(latency):
    fast = torch.backends.mha.get_fastpath_enabled()
    table = profiling.profile(Attending(), latency=latency, repeats=2).set_index("layer")
    attention = (
        17 * 16 * 48 + 2 * 17 * 17 * 16 + 17 * 16 * 16
    )  # queries, keys, values; their products; the way out
    by_hand = {
        "patches": (16 * 3 * 64 * 16, 16 * 3 * 64 + 16),
        "encoder.self_attn": (attention, 4 * 16 * 16 + 4 * 16),
        "encoder.linear1": (17 * 16 * 32, 16 * 32 + 32),
        "encoder.linear2": (17 * 16 * 32, 32 * 16 + 16),
        "encoder.norm1": (0, 32),
        "encoder.norm2": (0, 32),
        "head": (160, 170),
        "": (0, 16 + 17 * 16 + 170),  # the token, the places, and the head that did not run
    }
    rows = table[(table["macs"] > 0) | (table["parameters"] > 0)]
    found = zip(rows["macs"], rows["parameters"], strict=True)
    assert dict(zip(rows.index, found, strict=True)) == by_hand
    assert table["macs"].sum() == profiling.count_macs(Attending()) == sum(one for one, _ in by_hand.values())
    assert table["parameters"].sum() == profiling.count_parameters(Attending())
    assert table.index[-1] == ""
    assert table.loc["encoder.self_attn", "output_shape"] == (1, 17, 16)
    assert torch.backends.mha.get_fastpath_enabled() == fast


def test_recurrent_layers_and_3d_convolutions_worked_by_hand():
    class Sequences(nn.Module):
        def __init__(self):
            super().__init__()
            self.recurrent, self.head = (
                nn.LSTM(16, 24, batch_first=True, bidirectional=True),
                nn.Linear(48, 10),
            )

        def forward(self, images):
            return self.head(self.recurrent(images.flatten(1).view(len(images), -1, 16))[0][:, -1])

    class Volumes(nn.Module):
        def __init__(self):
            super().__init__()
            self.volume, self.head = nn.Conv3d(1, 16, 3, stride=(3, 2, 2), padding=1), nn.Linear(16, 10)

        def forward(self, images):
            return self.head(self.volume(images[:, None]).mean((2, 3, 4)))

    table = profiling.profile(Sequences()).set_index("layer")
    assert table.loc["recurrent", "macs"] == 192 * 2 * 4 * 24 * (16 + 24)  # steps, directions, gates
    assert profiling.count_macs(Sequences()) == table["macs"].sum() == 192 * 2 * 4 * 24 * 40 + 48 * 10
    assert profiling.profile(Volumes()).set_index("layer").loc["volume", "macs"] == 16 * 16 * 16 * 27


def test_a_module_with_parts_is_timed_without_them(monkeypatch):
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale, self.one, self.two = nn.Parameter(torch.ones(4)), nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            return self.scale * self.two(self.one(x))

    times = {"0": 1.0, "1": 2.0, "2": 3.5}  # the whole, after its two parts
    monkeypatch.setattr(
        profiling, "time_in_turns", lambda runs, repeats: {name: {"latency_ms": times[name]} for name in runs}
    )
    table = profiling.profile(Scaled(), (1, 4), latency=True)
    assert table[["layer", "latency_ms"]].values.tolist() == [["one", 1.0], ["two", 2.0], ["", 0.5]]
    assert list(table["parameters"]) == [20, 20, 4]


def test_a_layer_used_twice_is_paid_for_once():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x):
            return self.layer(self.layer(x))

    table = profiling.profile(Twice(), (1, 4))
    assert list(table["parameters"]) == [20, 0]
    assert list(table["macs"]) == [16, 16]


def test_profiling_leaves_the_model_as_it_was():
    model = models.build("tiny_convnet", width=0.3).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    table = profiling.profile(model, latency=True, repeats=3)
    profiling.summarize(model, repeats=3)
    assert (table["latency_ms"] > 0).all()
    assert all(module.training for module in model.modules())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_file_bytes_are_those_of_the_file(tmp_path):
    model = models.build("tiny_convnet")
    assert profiling.file_bytes(model) == models.save(model, tmp_path / "m.safetensors").stat().st_size
    weights = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    assert weights < profiling.file_bytes(model) < weights + 16_000


def test_latency_says_how_it_was_measured():
    result = profiling.measure_latency(
        models.build("tiny_convnet", width=0.2), (2, 3, 32, 32), threads=1, repeats=9
    )
    assert result["latency_low_ms"] <= result["latency_ms"] <= result["latency_high_ms"]
    assert (result["batch"], result["threads"], result["repeats"]) == (2, 1, 9)


class Clock:
    """A clock that moves only when something runs: by the milliseconds that it is said to take."""

    def __init__(self, monkeypatch):
        self.now, self.ran = 0.0, []
        monkeypatch.setattr(profiling, "timer", lambda: self.now)

    def run(self, name, *milliseconds):
        takes = itertools.cycle(milliseconds)

        def once():
            self.ran.append(name)
            self.now += next(takes) / 1e3

        return once


def test_times_are_of_single_runs_in_ms_in_turns_after_a_warm_up(monkeypatch):
    clock = Clock(monkeypatch)
    runs = {
        "a": clock.run("a", 2),
        "b": clock.run("b", 1, 2, 3, 4, 100),
    }  # five runs a round, warm-up and after
    times = profiling.time_in_turns(runs, repeats=50)
    keys = ["latency_ms", "latency_low_ms", "latency_high_ms"]
    assert list(times["a"]) == keys
    assert [times["a"][key] for key in keys] == pytest.approx([2, 2, 2])
    assert [times["b"][key] for key in keys] == pytest.approx([3, 2, 4])  # one slow run in five is not in it
    assert clock.ran == 55 * ["a", "b"]  # a tenth more to warm up
    clock.ran.clear()
    assert profiling.time_in_turns({"a": clock.run("a", 5)}, repeats=1)["a"]["latency_ms"] == pytest.approx(5)
    assert clock.ran == 3 * ["a"]  # at least two


def test_networks_are_timed_in_turns_with_the_threads_asked_for(monkeypatch):
    asked = []

    def time_in_turns(runs, repeats):
        asked.append((list(runs), torch.get_num_threads(), repeats, torch.is_grad_enabled()))
        return {
            name: {"latency_ms": 2.0 if name == "b" else 6.0, "latency_low_ms": 1.0, "latency_high_ms": 9.0}
            for name, run in runs.items()
            if run().shape == (1, 10)
        }

    monkeypatch.setattr(profiling, "time_in_turns", time_in_turns)
    before, model = torch.get_num_threads(), models.build("tiny_convnet", width=0.1)
    assert profiling.measure_latency(model, threads=3, repeats=40)["latency_ms"] == 6
    table = profiling.compare({"a": model, "b": model}, threads=2, repeats=5)
    assert asked == [(["model"], 3, 40, False), (["a", "b"], 2, 5, False)]
    assert torch.get_num_threads() == before
    assert table["speedup"].tolist() == [1, 3]
    assert table[["latency_ms", "latency_low_ms", "latency_high_ms"]].values.tolist() == [
        [6, 1, 9],
        [2, 1, 9],
    ]


def test_costs_are_of_one_picture_where_nothing_else_is_said(capsys):
    model = models.build("tiny_convnet", width=0.1)
    one = (1, 3, 32, 32)
    assert (
        profiling.peak_memory(model)
        == profiling.peak_memory(model, one)
        != profiling.peak_memory(model, (2, 3, 32, 32))
    )
    assert profiling.count_macs(model) == profiling.count_macs(model, one)
    assert profiling.profile(model).equals(profiling.profile(model, one))
    assert (
        profiling.measure_latency(model, repeats=3)["batch"]
        == profiling.summarize(model, repeats=3)["batch"]
        == 1
    )
    assert capsys.readouterr().out == ""  # PyTorch's counter would print its own table


def test_storage_ratios_count_from_the_dense_file():
    model = models.build("tiny_convnet", width=0.3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter[torch.rand_like(parameter) < 0.9] = 0
    table = profiling.storage_table(model).set_index("storage")
    assert table.loc["dense", "ratio"] == 1
    assert (table["ratio"] == profiling.file_bytes(model) / table["bytes"]).all()


def test_peak_memory_covers_weights_and_the_largest_activations():
    model = nn.Sequential(nn.Linear(1000, 1000, bias=False), nn.ReLU(), nn.Linear(1000, 10, bias=False))
    peak = profiling.peak_memory(model, (64, 1000))
    weights, images, hidden = 4 * 1_010_000, 4 * 64_000, 4 * 64_000
    assert weights + images + 2 * hidden <= peak <= weights + images + 3 * hidden
    assert profiling.peak_memory(models.build("vgg19"), (8, 3, 32, 32)) > profiling.peak_memory(
        models.build("vgg19")
    )


def test_networks_on_another_device_are_copied_to_the_baselines():
    model, cpu = models.build("tiny_convnet", width=0.2), torch.device("cpu")
    assert profiling._on(model, cpu) is model
    moved = profiling._on(model, torch.device("meta"))  # stands for a GPU
    assert (profiling._device(moved).type, profiling._device(model)) == ("meta", cpu)
    assert profiling.compare({"one": model}, repeats=3).attrs["device"] == "cpu"
    with pytest.raises(
        ValueError, match="model must be on the CPU or a CUDA GPU to count its memory, got meta"
    ):
        profiling.peak_memory(moved)


def test_compare_counts_from_the_baseline(digits):
    networks = {
        "large": models.build("tiny_convnet", width=0.5),
        "small": models.build("tiny_convnet", width=0.1),
    }
    table = profiling.compare(networks, digits.validation, repeats=3)
    assert table.loc["large", "compression"] == table.loc["large", "speedup"] == 1
    assert table.loc["small", "compression"] == pytest.approx(
        table.loc["large", "size_mb"] / table.loc["small", "size_mb"]
    )
    assert table.loc["large", "size_mb"] == profiling.file_bytes(networks["large"]) / 1e6
    assert (table["total"] == 200).all()
    assert (table["accuracy"] == 100 * table["correct"] / 200).all()
    assert table.attrs["batch"] == 1
    assert list(table) == [
        "size_mb", "storage", "parameters", "nonzeros", "macs", "accuracy", "correct", "total", "latency_ms",
        "latency_low_ms", "latency_high_ms", "compression", "speedup",
    ]  # fmt: skip
    assert profiling.compare(networks, baseline="small", repeats=3).loc["large", "compression"] < 1


def test_bad_arguments_are_named():
    model = models.build("tiny_convnet", width=0.1)
    with pytest.raises(ValueError, match="input_shape"):
        profiling.profile(model, (1, 0, 32, 32))
    with pytest.raises(ValueError, match="networks"):
        profiling.compare({})
    with pytest.raises(ValueError, match=r"baseline must be one of the networks \['a'\], got 'b'"):
        profiling.compare({"a": model}, baseline="b")
    with pytest.raises(ValueError, match="repeats"):
        profiling.measure_latency(model, repeats=1)
    with pytest.raises(TypeError, match="model"):
        profiling.profile("vgg19")


def test_timing_leaves_the_model_as_it_was():
    model = models.build("tiny_convnet", width=0.5)
    profiling.profile(model, latency=True, repeats=3)
    profiling.measure_latency(model, repeats=3)
    assert not model.features[3].weight.is_contiguous(memory_format=torch.channels_last)


def test_quantized_layers_are_not_counted_as_if_they_had_no_weights():
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10)).eval()
    rounded = torch.ao.quantization.quantize_dynamic(model, {nn.Linear})
    for count in (profiling.count_parameters, profiling.count_macs, profiling.profile, profiling.peak_memory):
        with pytest.raises(ValueError, match="model must have plain weights to be counted, but layer '1"):
            count(rounded)


def test_a_table_of_whole_numbers_may_be_the_first_parameter():
    class Chosen(nn.Module):
        def __init__(self):
            super().__init__()
            self.places = nn.Parameter(torch.arange(3072), requires_grad=False)
            self.linear = nn.Linear(3072, 10)

        def forward(self, images):
            return self.linear(images.flatten(1)[:, self.places])

    assert profiling.count_macs(Chosen()) == 30_720


def test_torchscript_is_refused_by_name():
    scripted = torch.jit.trace(nn.Conv2d(3, 4, 3), torch.zeros(1, 3, 8, 8))
    with pytest.raises(ValueError, match="it is TorchScript"):
        profiling.profile(scripted, (1, 3, 8, 8))
