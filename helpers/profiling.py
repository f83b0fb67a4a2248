"""What a network costs: parameters, MACs, bytes, memory and time; per layer, for one network, and side by side.

1 MAC is one multiply-accumulate, 2 FLOPs. Size is the bytes of a file really written. Latency is a median with its
interquartile range, and says batch size and thread count. MB are 10^6 bytes.
"""

from __future__ import annotations

import copy
import statistics
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.benchmark import Timer
from torch.utils.flop_counter import FlopCounterMode

from helpers import checks, models
from helpers.data import Data, Split
from helpers.evaluation import Accuracy, evaluate, evaluating
from helpers.storage import STORAGES


def profile(
    model: nn.Module, input_shape: Sequence[int] = (1, 3, 32, 32), *, latency: bool = False, repeats: int = 20
) -> pd.DataFrame:
    """Take a network apart, a row per leaf layer, in the order they run.

    Args:
        model: any module that takes one tensor.
        input_shape: of that tensor, batch first; MACs and times are for the whole batch.
        latency: also time each layer on its own real input (see ``measure_latency``).
        repeats: timings per layer.

    Returns:
        DataFrame with layer, type, output_shape, parameters, bytes (of parameters and buffers in memory), macs, and
        with ``latency`` also latency_ms. A layer used twice has two rows and its parameters in the first only.

    Raises:
        ValueError: ``input_shape`` does not start with batch and channels, or the model cannot take it.
    """
    checks.instance("model", model, nn.Module)
    checks.integer("repeats", repeats, 1)
    rows: list[dict] = []
    counted: set[int] = set()
    names = {module: name for name, module in model.named_modules()}
    counter = FlopCounterMode(display=False)
    before: list[int] = []
    calls: list[tuple[nn.Module, tuple]] = []

    def enter(layer: nn.Module, inputs: tuple) -> None:
        before.append(counter.get_total_flops())

    def leave(layer: nn.Module, inputs: tuple, output: Tensor) -> None:
        own = [
            t
            for t in (*layer.parameters(recurse=False), *layer.buffers(recurse=False))
            if id(t) not in counted
        ]
        counted.update(id(t) for t in own)
        row = {
            "layer": names[layer],
            "type": type(layer).__name__,
            "output_shape": tuple(output.shape),
            "parameters": sum(t.numel() for t in own if isinstance(t, nn.Parameter)),
            "bytes": sum(t.numel() * t.element_size() for t in own),
            "macs": (counter.get_total_flops() - before.pop()) // 2,
        }
        rows.append(row)
        if latency:
            calls.append((layer, tuple(i.detach().clone() for i in inputs)))

    if latency:
        model = _laid_out(model)
        names = {module: name for name, module in model.named_modules()}
    leaves = [layer for layer in model.modules() if not list(layer.children())]
    hooks = [leaf.register_forward_pre_hook(enter) for leaf in leaves] + [
        leaf.register_forward_hook(leave) for leaf in leaves
    ]
    try:
        with evaluating(model), counter:
            _forward(model, _example(model, input_shape))
    finally:
        for hook in hooks:
            hook.remove()
    with evaluating(model):
        for row, (layer, inputs) in zip(rows, calls, strict=False):
            timed = {"layer": layer, "inputs": inputs}
            row["latency_ms"] = statistics.median(
                _times("layer(*inputs)", timed, torch.get_num_threads(), repeats)
            )
    return pd.DataFrame(rows)


def count_parameters(model: nn.Module) -> int:
    """Return the number of parameters, each counted once, zeros included."""
    return sum(parameter.numel() for parameter in checks.instance("model", model, nn.Module).parameters())


def count_macs(model: nn.Module, input_shape: Sequence[int] = (1, 3, 32, 32)) -> int:
    """Return the multiply-accumulates of one forward pass: convolutions and matrix products, half the FLOPs."""
    counter = FlopCounterMode(display=False)
    with evaluating(model), counter:
        _forward(model, _example(model, input_shape))
    return counter.get_total_flops() // 2


def file_bytes(model: nn.Module, dtype: torch.dtype | None = None, storage: str = "dense") -> int:
    """Return the bytes of the file that ``models.save`` writes for this model (really written, then deleted)."""
    with tempfile.TemporaryDirectory() as folder:
        return models.save(model, Path(folder) / "model.safetensors", dtype, storage).stat().st_size


def storage_table(model: nn.Module, dtype: torch.dtype | None = None) -> pd.DataFrame:
    """Write ``model`` in every storage of ``helpers.storage``: a row each, with storage, bytes and the ratio to dense."""
    table = pd.DataFrame(
        [{"storage": storage, "bytes": file_bytes(model, dtype, storage)} for storage in STORAGES]
    )
    return table.assign(ratio=table["bytes"][0] / table["bytes"])


def smallest_file(model: nn.Module) -> tuple[str, int]:
    """Return the storage in which this model's file is smallest, and its bytes.

    A network without zeros to speak of (fewer than one weight in 32, the price of a mask) is stored dense, as everybody does.
    """
    weights = [
        parameter
        for parameter in checks.instance("model", model, nn.Module).parameters()
        if parameter.ndim > 1
    ]
    zeros = sum(int((weight == 0).sum()) for weight in weights)
    if 32 * zeros < sum(weight.numel() for weight in weights):
        return "dense", file_bytes(model)
    return min(
        ((storage, file_bytes(model, storage=storage)) for storage in STORAGES), key=lambda pair: pair[1]
    )


def measure_latency(
    model: nn.Module,
    input_shape: Sequence[int] = (1, 3, 32, 32),
    *,
    threads: int | None = None,
    repeats: int = 50,
) -> dict:
    """Time the forward pass with torch.utils.benchmark, in eval mode, channels last, after a warm-up.

    Args:
        model: any module that takes one tensor.
        input_shape: of that tensor.
        threads: of PyTorch. Default: as many as it uses now.
        repeats: timings; at least 3.

    Returns:
        latency_ms (median), latency_low_ms and latency_high_ms (quartiles), batch, threads, repeats.
    """
    checks.integer("repeats", repeats, 3)
    threads = torch.get_num_threads() if threads is None else checks.integer("threads", threads, 1, 1024)
    example, model = _example(model, input_shape), _laid_out(model)
    with evaluating(model):
        _forward(model, example)
        times = _times("model(example)", {"model": model, "example": example}, threads, repeats)
    low, median, high = (
        torch.tensor(times, dtype=torch.float64)
        .quantile(torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64))
        .tolist()
    )
    return {
        "latency_ms": median, "latency_low_ms": low, "latency_high_ms": high,
        "batch": int(input_shape[0]), "threads": threads, "repeats": repeats,
    }  # fmt: skip


def peak_memory(model: nn.Module, input_shape: Sequence[int] = (1, 3, 32, 32)) -> int:
    """Return the most bytes of tensors alive during one forward pass: weights, buffers, the input and activations.

    On a GPU this is the allocator's own peak. On a CPU, where there is no such count, it is taken from the profiler's
    record of every allocation; workspaces that a kernel takes behind PyTorch's back are not in it.
    """
    example = _example(model, input_shape)
    resident = (
        sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))
        + example.numel() * example.element_size()
    )
    with evaluating(model):
        if example.device.type not in ("cpu", "cuda"):
            raise ValueError(
                f"model must be on the CPU or on a CUDA GPU to have its memory counted, got {example.device}: move it"
            )
        _forward(model, example)  # a warm-up: workspaces of libraries come with the first call and stay
        if example.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(example.device)
            start = torch.cuda.memory_allocated(example.device)
            model(example)
            return resident + torch.cuda.max_memory_allocated(example.device) - start
        with torch.profiler.profile(
            activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
        ) as recorded:
            model(example)
    alive = peak = 0
    for event in sorted(recorded.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            alive += event.nbytes()
            peak = max(peak, alive)
    return resident + peak


def summarize(
    model: nn.Module,
    data: Data | Split | None = None,
    *,
    input_shape: Sequence[int] = (1, 3, 32, 32),
    threads: int | None = None,
    repeats: int = 50,
) -> dict:
    """Everything one network costs, as a flat dict.

    Args:
        model: made by ``models.build``, possibly compressed since.
        data: measures accuracy on its test split (of a Data) or on it (a Split). Default: no accuracy.
        input_shape: for MACs, memory and latency.
        threads: for latency. Default: as many as PyTorch uses now.
        repeats: timings.

    Returns:
        parameters, nonzeros (of them), macs, bytes and storage (of the smallest file; see ``smallest_file``), memory_bytes (peak
        while running), accuracy (an Accuracy or None), and the keys of ``measure_latency``.
    """
    split = data.test if isinstance(data, Data) else data
    checks.instance("data", split, (Split, type(None)))
    storage, size = smallest_file(model)
    return {
        "parameters": count_parameters(model),
        "nonzeros": sum(int(parameter.count_nonzero()) for parameter in model.parameters()),
        "macs": count_macs(model, input_shape),
        "bytes": size,
        "storage": storage,
        "memory_bytes": peak_memory(model, input_shape),
        "accuracy": None if split is None else evaluate(model, split),
        **measure_latency(model, input_shape, threads=threads, repeats=repeats),
    }


def compare_layers(
    before: nn.Module, after: nn.Module, names: Iterable[str], input_shape: Sequence[int] = (1, 3, 32, 32)
) -> pd.DataFrame:
    """Put layers beside what they became, parts of a split layer added up.

    Args:
        before: a network.
        after: the same, with some layers replaced by several under the same name.
        names: the layers to compare.
        input_shape: for both.

    Returns:
        A row per name: macs, macs_after, latency_ms, latency_ms_after, times_fewer_macs, times_faster.
    """
    checks.instance("before", before, nn.Module)
    checks.instance("after", after, nn.Module)
    device = _device(before)
    before_, after_ = (
        profile(_on(network, device), input_shape, latency=True) for network in (before, after)
    )
    rows = {}
    for name in checks.names("names", names):
        checks.choice("names", name, before_["layer"].unique())
        whole = before_[before_["layer"] == name]
        parts = after_[(after_["layer"] == name) | after_["layer"].str.startswith(f"{name}.")]
        rows[name] = {
            "macs": whole["macs"].sum(),
            "macs_after": parts["macs"].sum(),
            "latency_ms": whole["latency_ms"].sum(),
            "latency_ms_after": parts["latency_ms"].sum(),
        }
    table = pd.DataFrame.from_dict(rows, orient="index")
    return table.assign(
        times_fewer_macs=table["macs"] / table["macs_after"],
        times_faster=table["latency_ms"] / table["latency_ms_after"],
    )


def compare(
    networks: Mapping[str, nn.Module],
    data: Data | Split | None = None,
    *,
    baseline: str | None = None,
    **options: object,
) -> pd.DataFrame:
    """Put networks side by side: the series' one benchmark table.

    Args:
        networks: {name: model}.
        data: as in ``summarize``.
        baseline: the name that compression and speed-up are counted from. Default: the first.
        options: passed on to ``summarize``.

    Returns:
        A row per network, indexed by name: size_mb (of the smallest file), storage, parameters, nonzeros, macs, accuracy (percent),
        correct, total, latency_ms, latency_low_ms, latency_high_ms (quartiles), compression (times fewer bytes than the
        baseline), speedup (times lower latency). ``.attrs`` holds batch, threads and device: the
        baseline's, to which networks on another one are copied.

    Raises:
        ValueError: ``networks`` is empty, or ``baseline`` is not in it.
    """
    checks.names("networks", checks.instance("networks", networks, Mapping))
    for name, network in networks.items():
        checks.instance(f"networks[{name!r}]", network, nn.Module)
    if not networks:
        raise ValueError("networks must hold at least one model, got an empty mapping")
    baseline = checks.choice("baseline", next(iter(networks)) if baseline is None else baseline, networks)
    device = _device(networks[baseline])
    costs = {name: summarize(_on(model, device), data, **options) for name, model in networks.items()}
    reference = costs[baseline]
    rows = []
    for name, cost in costs.items():
        accuracy: Accuracy | None = cost["accuracy"]
        row = {"model": name, "size_mb": cost["bytes"] / 1e6} | {
            key: cost[key] for key in ("storage", "parameters", "nonzeros", "macs")
        }
        if accuracy is not None:
            row |= {"accuracy": 100 * float(accuracy), "correct": accuracy.correct, "total": accuracy.total}
        row |= {key: cost[key] for key in ("latency_ms", "latency_low_ms", "latency_high_ms")}
        row |= {
            "compression": reference["bytes"] / cost["bytes"],
            "speedup": reference["latency_ms"] / cost["latency_ms"],
        }
        rows.append(row)
    table = pd.DataFrame(rows).set_index("model")
    table.attrs = {"batch": reference["batch"], "threads": reference["threads"], "device": str(device)}
    return table


# -- inside ----------------------------------------------------------------------------------------------------------


def _device(model: nn.Module) -> torch.device:
    return next(iter(model.parameters()), torch.empty(0)).device


def _on(model: nn.Module, device: torch.device) -> nn.Module:
    """Return ``model``, or a copy of it on ``device``: a time on the GPU beside one on the CPU would compare processors."""
    return model if _device(model) == device else copy.deepcopy(model).to(device)


def _example(model: nn.Module, shape: Sequence[int]) -> Tensor:
    """A random input on the model's device, in its type and in channels-last order."""
    checks.instance("model", model, nn.Module)
    shape = checks.shape("input_shape", shape)
    first = next(iter(model.parameters()), torch.empty(0))
    generator = torch.Generator().manual_seed(0)
    example = torch.randn(shape, generator=generator).to(first.device, first.dtype)
    return example.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else example


def _forward(model: nn.Module, example: Tensor) -> Tensor:
    try:
        return model(example)
    except (RuntimeError, ValueError, IndexError) as error:
        raise ValueError(
            f"input_shape must be that of an input the model takes, got {tuple(example.shape)} ({error})"
        ) from error


def _laid_out(model: nn.Module) -> nn.Module:
    """A copy with its weights in channels-last order, so that no two networks differ in time by the order of their weights alone."""
    return copy.deepcopy(model).to(memory_format=torch.channels_last)


def _times(statement: str, names: dict, threads: int, repeats: int) -> list[float]:
    """Return ``repeats`` timings of ``statement``, in ms, each of one run after a warm-up."""
    timer = Timer(statement, globals=names, num_threads=threads)
    timer.timeit(max(2, repeats // 10))
    return [timer.timeit(1).mean * 1e3 for _ in range(repeats)]
