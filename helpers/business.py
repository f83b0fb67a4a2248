"""What a network costs to run and what a smaller one saves: plain arithmetic, units in every name, every assumption an argument.

Nothing is measured here. Latency, bytes and accuracy come from the rows of data/results; prices, volumes and devices are assumptions
that a reader changes. Money is in whatever currency the prices are in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace

import pandas as pd

from helpers import checks

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
        memory_mb: bytes of its weights where it runs, unpacked, / 10^6, above 0; activations come on top.
    """

    name: str
    latency_ms: float
    file_mb: float
    accuracy: float
    memory_mb: float

    def __post_init__(self) -> None:
        checks.number("latency_ms", self.latency_ms, 0, 1e15, open_low=True)
        checks.number("file_mb", self.file_mb, 0, 1e15, open_low=True)
        checks.number("accuracy", self.accuracy, 0, 1)
        checks.number("memory_mb", self.memory_mb, 0, open_low=True)


def measured(runs: pd.DataFrame, point: str) -> pd.Series:
    """Return the row of data/results/combined.csv that stands for a point: the last one of seed 0, whose file is in data/checkpoints.

    Args:
        runs: what ``results.read("combined")`` gave.
        point: the name of a compressed network.

    Raises:
        ValueError: ``runs`` has no such point.
    """
    rows = runs[runs["seed"] == 0]
    checks.choice("point", point, rows["point"].unique())
    return rows[rows["point"] == point].iloc[-1]


def networks(runs: pd.DataFrame, point: str) -> dict[str, Network]:
    """Return what one row of data/results/combined.csv measured: three networks side by side, in the same runtime.

    Args:
        runs: what ``results.read("combined")`` gave.
        point: which compressed network; its row is the one that ``measured`` returns.

    Returns:
        teacher, compressed, and int8 (the compressed one in 8 bits): ONNX Runtime, batch 1, 1 thread. The file is the zipped one.
        The two small ones are named after the point.

    Raises:
        ValueError: ``runs`` has no such point.
    """
    run = measured(runs, point)
    found = {}
    for role, key, name in (("teacher", "teacher_", "teacher"), ("compressed", "", point), ("int8", "int8_", f"{point} int8")):
        found[role] = Network(
            name,
            latency_ms=float(run[f"{key}latency_ms_1_threads"]),
            file_mb=float(run[f"{key}zip_bytes"]) / 1e6,
            accuracy=float(run[f"{key}correct"] / run["total"]),
            memory_mb=float(run[f"{key}onnx_bytes"]) / 1e6,
        )
    return found


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
    """Return what running a network costs in a year: compute, transfer, electricity, and their total.

    compute is the hours that all inferences take, one after the other, over the share of rented time in which the processor is busy.
    """
    _check(assumptions, network=network)
    per_year = assumptions.inferences_per_day * DAYS_PER_YEAR
    busy_hours = per_year * network.latency_ms / MS_PER_HOUR
    cost = {
        "compute": busy_hours / assumptions.utilization * assumptions.price_per_cpu_hour,
        "transfer": assumptions.downloads_per_year * network.file_mb / 1000 * assumptions.price_per_gb,
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


def worth_it(before: Network, after: Network, assumptions: Assumptions, years: float = 1, accuracy_lost: float = 0.01) -> tuple[bool, str]:
    """Say whether to compress, and why or why not.

    Args:
        before: what runs now.
        after: what would run.
        assumptions: of the service.
        years: over which it counts.
        accuracy_lost: what the product can bear, a share of 1.
    """
    checks.number("accuracy_lost", accuracy_lost, 0, 1)
    _check(assumptions, before=before, after=after)
    lost = before.accuracy - after.accuracy
    if lost > accuracy_lost:
        return False, f"no: it costs {100 * lost:.1f} points of accuracy, and the product bears {100 * accuracy_lost:.1f}"
    found = saving(before, after, assumptions, years)
    if found["net"] <= 0:
        return False, f"no: it saves {found['per_year']:,.0f} a year and costs {found['investment']:,.0f} to do"
    return True, f"yes: it pays for itself in {found['payback_days']:,.0f} days, and brings {found['net']:,.0f} in {years:g} year(s)"


def tornado(value: Callable[[Assumptions], float], assumptions: Assumptions, ranges: Mapping[str, tuple[float, float]]) -> pd.DataFrame:
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
    known = asdict(assumptions)
    rows = []
    for name, (low, high) in ranges.items():
        checks.choice("ranges", name, known)
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
    checks.choice("name", name, [known for known in asdict(assumptions) if known != "utilization"])
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
        memory_mb: that the weights may fill, above 0.
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
    return replace(network, latency_ms=network.latency_ms * checks.number("times_slower", times_slower, 0, open_low=True))


def needs(network: Network, use: UseCase) -> dict[str, float]:
    """Return what a network takes of a device: latency_ms, memory_mb, update_mb, joules_per_day."""
    there = on_device(network, use.times_slower)
    joules = energy_joules(there, use.service()) * use.inferences_per_device_per_day
    return {"latency_ms": there.latency_ms, "memory_mb": there.memory_mb, "update_mb": there.file_mb, "joules_per_day": joules}


def budgets(candidates: Mapping[str, Network], uses: Mapping[str, UseCase]) -> pd.DataFrame:
    """Compare what each network needs with what each use case allows.

    Args:
        candidates: {name: network}.
        uses: {name: use case}.

    Returns:
        A row per use case, budget and network: use, budget, network, needed, allowed, share (needed over allowed; it fits up to 1).
    """
    rows = []
    for use_name, use in uses.items():
        for name, network in candidates.items():
            for budget, needed in needs(network, use).items():
                allowed = getattr(use, budget)
                rows.append((use_name, budget, name, needed, allowed, needed / allowed))
    return pd.DataFrame(rows, columns=["use", "budget", "network", "needed", "allowed", "share"])
