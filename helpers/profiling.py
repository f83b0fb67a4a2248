"""What a network costs: parameters, MACs, bytes, memory and time; by layer, for one network, side by side.

1 MAC is one multiply-accumulate, 2 FLOPs. Size is the bytes of a file really written. Latency is a median
with its interquartile range, and says batch size and thread count. MB are 10^6 bytes.
"""

import copy
import tempfile
from collections.abc import Callable
from functools import partial
from itertools import accumulate

import pandas as pd
import torch
from torch import nn
from torch.utils.benchmark import set_torch_threads, timer

from helpers import models
from helpers.data import Data, Split
from helpers.evaluation import evaluate, evaluating, picture_shape
from helpers.networks import check_counted
from helpers.runs import PICTURE, calls, counted, example_of, forward, laid_out
from helpers.runs import hooked as hooked
from helpers.storage import STORAGES
from helpers.types import Count, Network, Shape, Threads, by_name, checked, whole

Repeats = whole(3)  # fewer have no quartiles
LATENCY = ["latency_ms", "latency_low_ms", "latency_high_ms"]


@checked
def time_in_turns(runs: by_name(Callable), repeats: Count = 50) -> dict[str, dict[str, float]]:
    """Time callables in turns, after a warm-up: what slows the machine for a while then slows all of them.

    Args:
        runs: {name: what to call, without arguments}: a network, or a session of another runtime.
        repeats: timings of each, of one call.

    Returns:
        {name: latency_ms (median), latency_low_ms and latency_high_ms (quartiles)}.
    """
    for run in list(runs.values()) * max(2, repeats // 10):
        run()
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            start = timer()  # on a GPU it waits for the work given before
            run()
            times[name].append(1e3 * (timer() - start))
    quartiles = pd.DataFrame(times).quantile([0.5, 0.25, 0.75])
    return quartiles.set_axis(LATENCY).to_dict()


@checked
def measure_latency(
    model: nn.Module, input_shape: Shape = PICTURE, *, threads: Threads | None = None, repeats: Repeats = 50
) -> dict:
    """Time the forward pass, in eval mode, channels last, after a warm-up.

    Returns:
        latency_ms (median), latency_low_ms and latency_high_ms (quartiles), batch, threads (of PyTorch; by
        default as many as it uses now), repeats.
    """
    return latencies({"model": model}, input_shape, threads=threads, repeats=repeats)["model"]


@checked
def latencies(
    networks: by_name(nn.Module),
    input_shape: Shape = PICTURE,
    *,
    threads: Threads | None = None,
    repeats: Repeats = 50,
) -> dict[str, dict]:
    """Time networks in turns: what ``measure_latency`` returns, by name."""
    threads = threads or torch.get_num_threads()
    runs = {
        name: partial(forward, laid_out(model), example_of(model, input_shape))
        for name, model in networks.items()
    }
    with torch.no_grad(), set_torch_threads(threads):
        times = time_in_turns(runs, repeats)
    how = {"batch": input_shape[0], "threads": threads, "repeats": repeats}
    return {name: found | how for name, found in times.items()}


@checked
@torch.no_grad()
def profile(
    model: Network, input_shape: Shape = PICTURE, *, latency: bool = False, repeats: Count = 20
) -> pd.DataFrame:
    """Take a network apart, a row per leaf layer, in the order they run.

    A module with parts has a row, too, after theirs, if it holds parameters or computes products itself, as
    attention does: what its own row counts is what its parts do not. So the rows add up to the network.

    Args:
        model: any module that takes one tensor.
        input_shape: of that tensor, batch first; MACs and times are for the whole batch.
        latency: also time the layers, each on its own real input, in turns, ``repeats`` times.

    Returns:
        DataFrame with layer, type, output_shape, parameters, bytes (of parameters and buffers in memory),
        macs, and with ``latency`` also latency_ms. A layer used twice has two rows and its parameters in the
        first only.
    """
    check_counted(model)
    found = calls(model, input_shape)
    rows = [
        {
            "layer": call.name,
            "type": type(call.layer).__name__,
            "output_shape": call.output_shape,
            "parameters": sum(one.numel() for one in call.own if isinstance(one, nn.Parameter)),
            "bytes": sum(one.nbytes for one in call.own),
            "macs": call.macs,
        }
        for call in found
    ]
    if latency:
        times = time_in_turns({str(row): call.run for row, call in enumerate(found)}, repeats)
        for row, call in enumerate(found):  # without its parts' time, which are the rows before
            parts = sum(one["latency_ms"] for one in rows[row - call.parts : row])
            rows[row]["latency_ms"] = max(0.0, times[str(row)]["latency_ms"] - parts)
    return pd.DataFrame(rows)


@checked
def count_parameters(model: nn.Module) -> int:
    """Return the number of parameters, each counted once, zeros included."""
    check_counted(model)
    return sum(parameter.numel() for parameter in model.parameters())


@checked
def count_macs(model: Network, input_shape: Shape = PICTURE) -> int:
    """Return the multiply-accumulates of one forward pass: half the FLOPs of its matrix products."""
    check_counted(model)
    with evaluating(model), counted(model) as counter:
        forward(model, example_of(model, input_shape))
    return counter.get_total_flops() // 2


@checked
def file_bytes(model: nn.Module, dtype: torch.dtype | None = None, storage: str = "dense") -> int:
    """Return the bytes of the file that ``models.save`` really writes for this model; it is then deleted."""
    with tempfile.TemporaryDirectory() as folder:
        return models.save(model, f"{folder}/model.safetensors", dtype, storage).stat().st_size


@checked
def storage_table(model: nn.Module, dtype: torch.dtype | None = None) -> pd.DataFrame:
    """Write ``model`` in every storage of ``helpers.storage``: a row each: storage, bytes, ratio to dense."""
    sizes = {storage: file_bytes(model, dtype, storage) for storage in STORAGES}
    table = pd.DataFrame({"storage": sizes.keys(), "bytes": sizes.values()})
    return table.assign(ratio=sizes["dense"] / table["bytes"])


@checked
def smallest_file(model: nn.Module) -> tuple[str, int]:
    """Return the storage in which this model's file is smallest ("dense" if few are zero) and its bytes."""
    # fewer zeros than one weight in 32 do not even pay for a mask
    weights = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    zeros = sum(int((weight == 0).sum()) for weight in weights)
    few = 32 * zeros < sum(weight.numel() for weight in weights)
    sizes = {storage: file_bytes(model, storage=storage) for storage in (("dense",) if few else STORAGES)}
    return min(sizes.items(), key=lambda item: item[1])


@checked
def peak_memory(model: nn.Module, input_shape: Shape = PICTURE) -> int:
    """Return the most bytes of tensors alive during one forward pass: weights, buffers, input, activations.

    On a GPU it is the allocator's own peak. On a CPU it is taken from the profiler's record of allocations;
    workspaces that a kernel takes behind PyTorch's back are not in it.
    """
    check_counted(model)
    example = example_of(model, input_shape)
    resident = sum(one.nbytes for one in (*model.parameters(), *model.buffers(), example))
    if example.device.type not in ("cpu", "cuda"):
        raise ValueError(f"model must be on the CPU or a CUDA GPU to count its memory, got {example.device}")
    with evaluating(model):
        forward(model, example)  # a warm-up: workspaces of libraries come with the first call and stay
        if example.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(example.device)
            start = torch.cuda.memory_allocated(example.device)
            model(example)
            return resident + torch.cuda.max_memory_allocated(example.device) - start
        with torch.profiler.profile(profile_memory=True) as recorded:
            model(example)
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    changes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    return resident + max(accumulate(changes), default=0)


@checked
def summarize(
    model: nn.Module,
    data: Data | Split | None = None,
    *,
    input_shape: Shape | None = None,
    threads: Threads | None = None,
    repeats: Repeats = 50,
) -> dict:
    """Everything one network costs, as a flat dict.

    Args:
        model: made by ``models.build``, possibly compressed since.
        data: its test split (of a Data), or it (a Split), gives accuracy and, by default, input_shape.
        input_shape, threads, repeats: as in ``measure_latency``.

    Returns:
        parameters, nonzeros (of them), macs, bytes and storage (of the smallest file), accuracy (an Accuracy
        or None), memory_bytes (peak while running), and what ``measure_latency`` gives.
    """
    input_shape = picture_shape(data, PICTURE) if input_shape is None else input_shape
    costs = _costs(model, data, input_shape) | {"memory_bytes": peak_memory(model, input_shape)}
    return costs | measure_latency(model, input_shape, threads=threads, repeats=repeats)


def _costs(model: nn.Module, data: Data | Split | None, input_shape: tuple[int, ...]) -> dict[str, object]:
    split = data.test if isinstance(data, Data) else data
    storage, size = smallest_file(model)
    return {
        "parameters": count_parameters(model),
        "nonzeros": sum(int(parameter.count_nonzero()) for parameter in model.parameters()),
        "macs": count_macs(model, input_shape),
        "bytes": size,
        "storage": storage,
        "accuracy": None if split is None else evaluate(model, split),
    }


@checked
def compare(
    networks: by_name(nn.Module),
    data: Data | Split | None = None,
    *,
    baseline: str | None = None,
    input_shape: Shape | None = None,
    threads: Threads | None = None,
    repeats: Repeats = 50,
) -> pd.DataFrame:
    """Put networks side by side, timed in turns: the series' one benchmark table.

    Args:
        networks: {name: model}.
        data, input_shape, threads, repeats: as in ``summarize``.
        baseline: the name that compression and speed-up are counted from. Default: the first.

    Returns:
        A row per network, indexed by name: size_mb (of the smallest file), storage, parameters, nonzeros,
        macs, accuracy (percent), correct, total, latency_ms, latency_low_ms, latency_high_ms (quartiles),
        compression (times fewer bytes than the baseline), speedup (times lower latency). ``.attrs`` holds
        batch, threads and device: the baseline's, to which networks on another one are copied.
    """
    baseline = next(iter(networks), None) if baseline is None else baseline
    if baseline not in networks:
        raise ValueError(f"baseline must be one of the networks {[*networks]}, got {baseline!r}")
    input_shape = picture_shape(data, PICTURE) if input_shape is None else input_shape
    device = _device(networks[baseline])
    networks = {name: _on(model, device) for name, model in networks.items()}
    times = latencies(networks, input_shape, threads=threads, repeats=repeats)
    costs = [_costs(model, data, input_shape) | times[name] for name, model in networks.items()]
    table = pd.DataFrame(costs, index=pd.Index(networks, name="model"))
    first, accuracies = table.loc[baseline], table.pop("accuracy")
    columns = ["size_mb", "storage", "parameters", "nonzeros", "macs"]
    table["size_mb"], table["compression"] = table["bytes"] / 1e6, first["bytes"] / table["bytes"]
    table["speedup"] = first["latency_ms"] / table["latency_ms"]
    if data is not None:
        table[["correct", "total"]] = [(one.correct, one.total) for one in accuracies]
        table["accuracy"] = 100 * table["correct"] / table["total"]
        columns += ["accuracy", "correct", "total"]
    table = table[[*columns, *LATENCY, "compression", "speedup"]]
    table.attrs = {"batch": input_shape[0], "threads": first["threads"], "device": str(device)}
    return table


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters(), torch.empty(0)).device


def _on(model: nn.Module, device: torch.device) -> nn.Module:
    # times on two devices would compare processors
    return model if _device(model) == device else copy.deepcopy(model).to(device)
