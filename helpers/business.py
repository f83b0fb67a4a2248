"""What a network costs to run and what a smaller one saves: plain arithmetic, units in every name, every assumption an argument.

Nothing is measured here. Latency, bytes and accuracy come from the rows of data/results; prices, volumes and devices are assumptions
that a reader changes. Money is in whatever currency the prices are in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import pandas as pd

from helpers import checks
from helpers.data import HOME

DAYS_PER_YEAR = 365
MS_PER_HOUR = 3_600_000
MS_PER_DAY = 86_400_000


@dataclass(frozen=True)
class Network:
    """What was measured of one network.

    Attributes:
        name: what to call it.
        latency_ms: of one inference on the machine that serves it, above 0.
        file_mb: bytes of the file that is sent / 10^6, above 0.
        accuracy: share of 1.
        memory_mb: bytes of its weights where it runs, unpacked, / 10^6, above 0.
        process_mb: bytes / 10^6 by which a process grew that loaded and ran it, above 0; None where nobody measured it.
    """

    name: str
    latency_ms: float
    file_mb: float
    accuracy: float
    memory_mb: float
    process_mb: float | None = None

    def __post_init__(self) -> None:
        checks.instance("name", self.name, str)
        checks.number("latency_ms", self.latency_ms, 0, 1e15, open_low=True)
        checks.number("file_mb", self.file_mb, 0, 1e15, open_low=True)
        checks.number("accuracy", self.accuracy, 0, 1)
        checks.number("memory_mb", self.memory_mb, 0, open_low=True)
        if self.process_mb is not None:
            checks.number("process_mb", self.process_mb, 0, open_low=True)


def _rows(name: str, table: pd.DataFrame, *columns: str) -> pd.DataFrame:
    """Return ``table`` if it has these columns.

    Raises:
        TypeError: it is no DataFrame.
        ValueError: it lacks a column; the message names the argument and the columns.
    """
    missing = [column for column in columns if column not in checks.instance(name, table, pd.DataFrame)]
    if missing:
        raise ValueError(f"{name} must have the columns {', '.join(columns)}, and lacks {', '.join(missing)}")
    return table


def measured(runs: pd.DataFrame, point: str, folder: str | Path = HOME / "data" / "checkpoints") -> pd.Series:
    """Return the row of data/results/combined.csv that stands for a point: the last one of seed 0, whose file is in ``folder``.

    Args:
        runs: what ``results.read("combined")`` gave.
        point: the name of a compressed network.
        folder: where its file lies.

    Raises:
        ValueError: ``runs`` has no such point.
        FileNotFoundError: the file is not there, so nobody could measure the network again; the message names it.
    """
    rows = _rows("runs", runs, "seed", "point")[runs["seed"] == 0]
    checks.choice("point", point, rows["point"].unique())
    file = checks.path("folder", folder) / f"vgg19_{point}.safetensors"
    if not file.is_file():
        raise FileNotFoundError(f"{file} does not exist: of point {point!r} there are rows, but no network")
    return rows[rows["point"] == point].iloc[-1]


def process_mb(formats: pd.DataFrame, file: str, kind: str = "ONNX") -> float | None:
    """Return by how much a process grew that loaded a network and classified one picture, the runtime's own memory taken off.

    Args:
        formats: what ``results.read("formats")`` gave.
        file: the network's name in data/checkpoints.
        kind: the format it ran in.

    Returns:
        10^6 bytes, of the last such row; None if there is none, or none with a measurement.
    """
    _rows("formats", formats, "file", "format", "peak_mb", "baseline_mb")
    checks.instance("file", file, str)
    checks.instance("kind", kind, str)
    rows = formats[(formats["file"] == file) & (formats["format"] == kind)].dropna(
        subset=["peak_mb", "baseline_mb"]
    )
    return None if rows.empty else float(rows["peak_mb"].iloc[-1] - rows["baseline_mb"].iloc[-1])


def _network(row: pd.Series, key: str, name: str, process: float | None) -> Network:
    """Return the network whose columns in ``row`` begin with ``key``."""
    columns = {
        key + column: row.get(key + column)
        for column in ("latency_ms_1_threads", "zip_bytes", "onnx_bytes", "correct")
    }
    columns["total"] = row.get("total")
    missing = [column for column, value in columns.items() if pd.isna(value)]
    if missing:
        raise ValueError(
            f"the row of {name!r} must have all its measurements, but {', '.join(missing)} is empty"
        )
    latency, sent, weights, correct, total = map(float, columns.values())
    return Network(name, latency, sent / 1e6, correct / total, weights / 1e6, process)


def networks(
    runs: pd.DataFrame,
    point: str,
    formats: pd.DataFrame | None = None,
    folder: str | Path = HOME / "data" / "checkpoints",
) -> dict[str, Network]:
    """Return what one row of data/results/combined.csv measured: three networks side by side, in the same runtime.

    Args:
        runs: what ``results.read("combined")`` gave.
        point: which compressed network; its row is the one that ``measured`` returns.
        formats: what ``results.read("formats")`` gave, for the memory of a process; without it none is known.
        folder: as in ``measured``.

    Returns:
        teacher, compressed, and int8 (the compressed one in 8 bits): ONNX Runtime, batch 1, 1 thread. The file is the zipped one.
        The two small ones are named after the point.

    Raises:
        ValueError: ``runs`` has no such point, or its row lacks a measurement; the message says of which network.
        FileNotFoundError: as in ``measured``.
    """
    run = measured(runs, point, folder)
    roles = {
        "teacher": ("teacher_", "teacher"),
        "compressed": ("", point),
        "int8": ("int8_", f"{point} int8"),
    }
    found = {}
    for role, (key, name) in roles.items():
        file, kind = (
            "vgg19" if role == "teacher" else f"vgg19_{point}",
            "ONNX, int8" if role == "int8" else "ONNX",
        )
        found[role] = _network(run, key, name, None if formats is None else process_mb(formats, file, kind))
    return found


def teacher_int8(shipped: pd.DataFrame, formats: pd.DataFrame | None = None) -> Network:
    """Return the teacher in 8-bit integers, which needs no training: what the last row of ``vgg19`` in data/results/shipped.csv measured.

    Args:
        shipped: what ``results.read("shipped")`` gave.
        formats: as in ``networks``.

    Raises:
        ValueError: there is no such row, or it lacks a measurement.
    """
    rows = _rows("shipped", shipped, "file")[shipped["file"] == "vgg19"]
    if rows.empty:
        raise ValueError("shipped must have a row of 'vgg19', and has none")
    return _network(
        rows.iloc[-1],
        "int8_",
        "teacher int8",
        None if formats is None else process_mb(formats, "vgg19", "ONNX, int8"),
    )


@dataclass(frozen=True)
class Assumptions:
    """What is assumed about a service; none of it was measured, all of it can be changed.

    Attributes:
        inferences_per_day: over all users.
        price_per_cpu_hour: of one core, or of as many as ``latency_ms`` was measured on.
        utilization: share of the rented time in which the processor computes, in (0, 1].
        downloads_per_year: how often the file is sent to a device.
        price_per_gb: of sending 10^9 bytes.
        watts: that the processor draws while it computes.
        price_per_kwh: of electricity; 0 where it is in the price of the hour.
        engineer_days: that compressing takes, once.
        price_per_engineer_day: of one.
    """

    inferences_per_day: float = 1_000_000
    price_per_cpu_hour: float = 0.05
    utilization: float = 0.4
    downloads_per_year: float = 0
    price_per_gb: float = 0.08
    watts: float = 10
    price_per_kwh: float = 0
    engineer_days: float = 10
    price_per_engineer_day: float = 800

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "utilization":
                checks.number(field.name, value, 0, 1, open_low=True)
            else:
                checks.number(field.name, value, 0, 1e15)


def _check(assumptions: Assumptions, **networks: Network) -> None:
    checks.instance("assumptions", assumptions, Assumptions)
    for name, network in networks.items():
        checks.instance(name, network, Network)


def energy_joules(network: Network, assumptions: Assumptions) -> float:
    """Return the energy of one inference: the processor's power times the latency."""
    _check(assumptions, network=network)
    return assumptions.watts * network.latency_ms / 1000


def cost_per_year(network: Network, assumptions: Assumptions) -> dict[str, float]:
    """Return what running a network costs in a year: compute, downloads, electricity, and their total.

    compute is the hours that all inferences take, one after the other, over the share of rented time in which the processor is busy.
    """
    _check(assumptions, network=network)
    per_year = assumptions.inferences_per_day * DAYS_PER_YEAR
    busy_hours = per_year * network.latency_ms / MS_PER_HOUR
    cost = {
        "compute": busy_hours / assumptions.utilization * assumptions.price_per_cpu_hour,
        "downloads": assumptions.downloads_per_year * network.file_mb / 1000 * assumptions.price_per_gb,
        "electricity": per_year * energy_joules(network, assumptions) / 3.6e6 * assumptions.price_per_kwh,
    }
    return cost | {"total": sum(cost.values())}


def processors(network: Network, assumptions: Assumptions) -> float:
    """Return how many processors are busy on average, idle time included: inferences times latency over the length of a day."""
    _check(assumptions, network=network)
    return assumptions.inferences_per_day * network.latency_ms / MS_PER_DAY / assumptions.utilization


def saving(before: Network, after: Network, assumptions: Assumptions, years: float = 1) -> dict[str, float]:
    """Return what replacing one network by another is worth.

    Args:
        before: what runs now.
        after: what would run.
        assumptions: of the service.
        years: over which it counts, above 0.

    Returns:
        per_year (the cost that falls away), investment (engineering, once), net (over ``years``), return_on_investment (net over
        investment; infinite where nothing is invested and something is saved), payback_days (infinite where nothing is saved).
    """
    checks.number("years", years, 0, 100, open_low=True)
    _check(assumptions, before=before, after=after)
    per_year = cost_per_year(before, assumptions)["total"] - cost_per_year(after, assumptions)["total"]
    investment = assumptions.engineer_days * assumptions.price_per_engineer_day
    net = years * per_year - investment
    none = float("inf") if net > 0 else 0.0 if net == 0 else float("-inf")
    return {
        "per_year": per_year,
        "investment": investment,
        "net": net,
        "return_on_investment": net / investment if investment else none,
        "payback_days": DAYS_PER_YEAR * investment / per_year if per_year > 0 else float("inf"),
    }


def worth_it(
    before: Network, after: Network, assumptions: Assumptions, years: float = 1, accuracy_lost: float = 0.01
) -> tuple[bool, str]:
    """Say whether to compress, and why or why not.

    Args:
        before: what runs now.
        after: what would run.
        assumptions: of the service.
        years: over which it counts.
        accuracy_lost: what the product can bear, a share of 1.
    """
    checks.number("accuracy_lost", accuracy_lost, 0, 1)
    checks.number("years", years, 0, 100, open_low=True)
    _check(assumptions, before=before, after=after)
    lost = before.accuracy - after.accuracy
    if lost > accuracy_lost:
        return (
            False,
            f"no: it costs {100 * lost:.1f} points of accuracy, and the product bears {100 * accuracy_lost:.1f}",
        )
    found = saving(before, after, assumptions, years)
    if found["net"] <= 0:
        return (
            False,
            f"no: it saves {found['per_year']:,.0f} a year and costs {found['investment']:,.0f} to do",
        )
    return (
        True,
        f"yes: it pays for itself in {found['payback_days']:,.0f} days, and brings {found['net']:,.0f} in {years:g} year(s)",
    )


def tornado(
    value: Callable[[Assumptions], float], assumptions: Assumptions, ranges: Mapping[str, tuple[float, float]]
) -> pd.DataFrame:
    """Move one assumption at a time and see which decides.

    Args:
        value: what is asked for, for example the net saving.
        assumptions: the middle.
        ranges: {assumption: (low, high)}.

    Returns:
        A row per assumption, the most decisive first: assumption, low, high, value_low, value_high, swing (their distance).

    Raises:
        ValueError: a name is no assumption, or a value is out of range.
    """
    checks.instance("value", value, Callable)
    known = asdict(checks.instance("assumptions", assumptions, Assumptions))
    rows = []
    for name, ends in checks.instance("ranges", ranges, Mapping).items():
        checks.choice("ranges", name, known)
        if len(checks.numbers("ranges", ends)) != 2:
            raise ValueError(
                f"ranges must be a low and a high end for each assumption, got {ends!r} for {name}"
            )
        low, high = ends
        ends = [value(replace(assumptions, **{name: end})) for end in (low, high)]
        rows.append((name, low, high, *ends, abs(ends[1] - ends[0])))
    table = pd.DataFrame(rows, columns=["assumption", "low", "high", "value_low", "value_high", "swing"])
    return table.sort_values("swing", ascending=False, ignore_index=True)


def break_even(value: Callable[[Assumptions], float], assumptions: Assumptions, name: str) -> float:
    """Return where one assumption would have to stand for ``value`` to be 0, all others as they are.

    Args:
        value: what is asked for, for example the net saving; linear in the assumption.
        assumptions: the others.
        name: which one to move; not utilization, which divides.

    Returns:
        Its value at break-even, at least 0; infinite if there is none.

    Raises:
        ValueError: ``name`` is no assumption, or utilization.
    """
    checks.instance("value", value, Callable)
    known = asdict(checks.instance("assumptions", assumptions, Assumptions))
    checks.choice("name", name, [each for each in known if each != "utilization"])
    step = max(1.0, getattr(assumptions, name))
    start, end = (value(replace(assumptions, **{name: at})) for at in (0, step))
    if start == end:
        return float("inf")
    crossing = step * start / (start - end)
    return crossing if crossing >= 0 else float("inf")


@dataclass(frozen=True)
class UseCase:
    """A kind of device, how it is used, and what one network may take of it. All of it is assumed.

    Attributes:
        times_slower: how many times longer an inference takes there than on the processor that was measured, above 0.
        watts: that its processor draws while it computes.
        devices: how many there are, above 0.
        inferences_per_device_per_day: how often each one uses the network.
        updates_per_year: how often each one downloads it.
        latency_ms: that one inference may take, above 0.
        memory_mb: that the network may fill, weights and all it needs to run, above 0.
        update_mb: that one download may have, above 0.
        joules_per_day: that a device may spend on it, above 0.
    """

    times_slower: float
    watts: float
    devices: float
    inferences_per_device_per_day: float
    updates_per_year: float
    latency_ms: float
    memory_mb: float
    update_mb: float
    joules_per_day: float

    def __post_init__(self) -> None:
        for field in fields(self):
            above = field.name not in ("watts", "inferences_per_device_per_day", "updates_per_year")
            checks.number(field.name, getattr(self, field.name), 0, 1e15, open_low=above)

    def service(self, **others: float) -> Assumptions:
        """Return the assumptions about all devices together; the devices' owners pay for their processors and electricity.

        Args:
            **others: the assumptions that are not of the device, such as price_per_gb and engineer_days.
        """
        return Assumptions(
            inferences_per_day=self.devices * self.inferences_per_device_per_day,
            downloads_per_year=self.devices * self.updates_per_year,
            watts=self.watts,
            **({"price_per_cpu_hour": 0} | others),
        )


def on_device(network: Network, times_slower: float) -> Network:
    """Return the network as it would be on a processor that takes ``times_slower`` times as long: an assumption, no measurement."""
    checks.instance("network", network, Network)
    return replace(
        network, latency_ms=network.latency_ms * checks.number("times_slower", times_slower, 0, open_low=True)
    )


def needs(network: Network, use: UseCase) -> dict[str, float]:
    """Return what a network takes of a device: latency_ms, memory_mb, update_mb, joules_per_day.

    Its memory is that of a process where one was measured, and that of the weights alone, which is less, where not.
    """
    checks.instance("network", network, Network)
    checks.instance("use", use, UseCase)
    there = on_device(network, use.times_slower)
    joules = energy_joules(there, use.service()) * use.inferences_per_device_per_day
    memory = there.memory_mb if there.process_mb is None else there.process_mb
    return {
        "latency_ms": there.latency_ms,
        "memory_mb": memory,
        "update_mb": there.file_mb,
        "joules_per_day": joules,
    }


def misses(network: Network, use: UseCase) -> list[str]:
    """Return the names of the budgets that a network does not fit into; none: it fits."""
    return [budget for budget, needed in needs(network, use).items() if needed > getattr(use, budget)]


def verdict(
    before: Network,
    after: Network,
    use: UseCase,
    assumptions: Assumptions,
    years: float = 1,
    accuracy_lost: float = 0.01,
) -> str:
    """Say in a few words whether a network can and should take the place of another on a device: first budgets, then accuracy, then money.

    Args:
        before: what was there first; equal to ``after`` to ask about it alone.
        after: what would run.
        use: the device and its budgets.
        assumptions: of the service, the engineers' days for this change among them.
        years: over which money counts.
        accuracy_lost: what the product can bear, a share of 1.
    """
    pays, _ = worth_it(before, after, assumptions, years, accuracy_lost)
    missed = misses(after, use)
    if missed:
        return "misses " + ", ".join(missed)
    if after == before:
        return "fits"
    if before.accuracy - after.accuracy > accuracy_lost:
        return "fits, but loses too much accuracy"
    needed = "needed" if misses(before, use) else "fits"
    return f"{needed}, and pays" if pays else f"{needed}, but does not pay"


def budgets(candidates: Mapping[str, Network], uses: Mapping[str, UseCase]) -> pd.DataFrame:
    """Compare what each network needs with what each use case allows.

    Args:
        candidates: {name: network}.
        uses: {name: use case}.

    Returns:
        A row per use case, budget and network: use, budget, network, needed, allowed, share (needed over allowed; it fits up to 1).
    """
    for argument, group, kind in (("candidates", candidates, Network), ("uses", uses, UseCase)):
        for each in checks.instance(argument, group, Mapping).values():
            checks.instance(argument, each, kind)
    rows = []
    for use_name, use in uses.items():
        for name, network in candidates.items():
            for budget, needed in needs(network, use).items():
                allowed = getattr(use, budget)
                rows.append((use_name, budget, name, needed, allowed, needed / allowed))
    return pd.DataFrame(rows, columns=["use", "budget", "network", "needed", "allowed", "share"])
