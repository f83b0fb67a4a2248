"""What a network costs to run and what a smaller one saves: plain arithmetic, every assumption an argument.

Nothing is measured here. Latency, bytes and accuracy come from data/results/networks.csv; prices, volumes and
devices are assumptions that a reader changes. Money is in whatever currency the prices are in.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from math import inf

import pandas as pd

from helpers.types import Number, PositiveShare, Share, by_name, checked, real, several, table

DAYS_PER_YEAR, MS_PER_DAY, MS_PER_HOUR = 365, 86_400_000, 3_600_000
Amount, Level, Years = real(gt=0, le=1e15), real(ge=0, le=1e15), real(gt=0, le=100)
MEASURED = ("latency_ms", "zip_bytes", "bytes", "correct", "total")
Rows = table("network", "seed", "format", "memory_mb", *MEASURED)


@checked
@dataclass(frozen=True)
class Network:
    """What was measured of one network.

    Attributes:
        name: what to call it.
        latency_ms: of one inference on the machine that serves it.
        file_mb: bytes of the file that is sent / 10^6.
        accuracy: share of 1.
        memory_mb: bytes of its weights where it runs, unpacked, / 10^6.
        process_mb: bytes / 10^6 by which a process grew that loaded and ran it; None where not measured.
    """

    name: str
    latency_ms: Amount
    file_mb: Amount
    accuracy: Share
    memory_mb: Amount
    process_mb: Amount | None = None


@checked
def network(rows: Rows, name: str, format: str = "onnx") -> Network:
    """Return what was measured of a network in one file format: batch 1, 1 thread, the file zipped.

    Args:
        rows: of data/results/networks.csv; of the first seed, the last one counts.
        name: of the network there.
        format: "torch", "onnx" or "onnx int8".
    """
    found = rows[(rows["network"] == name) & (rows["format"] == format)]
    found = found[found["seed"] == found["seed"].min()]
    if found.empty:
        known = sorted({f"{one}, {kind}" for one, kind in zip(rows["network"], rows["format"], strict=True)})
        raise ValueError(f"name and format must be one of {'; '.join(known)}, got {name}, {format}")
    row = found.iloc[-1]
    empty = ", ".join(row.index[row.isna()].intersection(MEASURED))
    if empty:
        raise ValueError(f"rows must have all measurements of {name}, {format}, but {empty} is empty")
    return Network(
        name=f"{name} {format.removeprefix('onnx').strip()}".strip(),
        latency_ms=row["latency_ms"],
        file_mb=row["zip_bytes"] / 1e6,
        accuracy=row["correct"] / row["total"],
        memory_mb=row["bytes"] / 1e6,
        process_mb=None if pd.isna(row["memory_mb"]) else row["memory_mb"],
    )


@checked
@dataclass(frozen=True)
class Assumptions:
    """What is assumed about a service; none of it was measured, all of it can be changed.

    Attributes:
        inferences_per_day: over all users.
        price_per_cpu_hour: of one core, or of as many as ``latency_ms`` was measured on.
        utilization: share of the rented time in which the processor computes.
        downloads_per_year: how often the file is sent to a device.
        price_per_gb: of sending 10^9 bytes.
        watts: that the processor draws while it computes.
        price_per_kwh: of electricity; 0 where it is in the price of the hour.
        engineer_days: that compressing takes, once.
        price_per_engineer_day: of one.
        releases_per_year: how often a new network replaces the one that runs.
        days_per_release: that compressing, checking and watching a second network takes at each of them.
    """

    inferences_per_day: Level = 1_000_000
    price_per_cpu_hour: Level = 0.05
    utilization: PositiveShare = 0.4
    downloads_per_year: Level = 0
    price_per_gb: Level = 0.08
    watts: Level = 10
    price_per_kwh: Level = 0
    engineer_days: Level = 10
    price_per_engineer_day: Level = 800
    releases_per_year: Level = 0
    days_per_release: Level = 0


@checked
def energy_joules(network: Network, assumptions: Assumptions) -> float:
    """Return the energy of one inference: the processor's power times the latency."""
    return assumptions.watts * network.latency_ms / 1000


@checked
def cost_per_year(network: Network, assumptions: Assumptions) -> dict[str, float]:
    """Return what running a network costs in a year: compute, downloads, electricity, and their total.

    compute is the hours that all inferences take, one after the other, over the share of rented time in which
    the processor is busy.
    """
    per_year = assumptions.inferences_per_day * DAYS_PER_YEAR
    rented_hours = per_year * network.latency_ms / MS_PER_HOUR / assumptions.utilization
    sent_gb = assumptions.downloads_per_year * network.file_mb / 1000
    kwh = per_year * energy_joules(network, assumptions) / 3.6e6
    cost = {
        "compute": rented_hours * assumptions.price_per_cpu_hour,
        "downloads": sent_gb * assumptions.price_per_gb,
        "electricity": kwh * assumptions.price_per_kwh,
    }
    return cost | {"total": sum(cost.values())}


@checked
def upkeep(assumptions: Assumptions) -> float:
    """Return what a year of releases costs in engineers' days, beside the days spent once."""
    return assumptions.releases_per_year * assumptions.days_per_release * assumptions.price_per_engineer_day


@checked
def processors(network: Network, assumptions: Assumptions) -> float:
    """Return how many processors are rented on average, idle time included: latencies over a day."""
    return assumptions.inferences_per_day * network.latency_ms / MS_PER_DAY / assumptions.utilization


@checked
def saving(before: Network, after: Network, assumptions: Assumptions, years: Years = 1) -> dict[str, float]:
    """Return what replacing one network by another is worth.

    Returns:
        per_year (the cost that falls away, less the ``upkeep`` of what replaces it), investment
        (engineering, once), net (over ``years``),
        return_on_investment (net over investment; infinite where nothing is invested and something is saved),
        payback_days (infinite where nothing is saved).
    """
    costs = [cost_per_year(network, assumptions)["total"] for network in (before, after)]
    per_year = costs[0] - costs[1] - upkeep(assumptions)
    investment = assumptions.engineer_days * assumptions.price_per_engineer_day
    net = years * per_year - investment
    free = inf if net > 0 else 0.0 if net == 0 else -inf
    return {
        "per_year": per_year,
        "investment": investment,
        "net": net,
        "return_on_investment": net / investment if investment else free,
        "payback_days": DAYS_PER_YEAR * investment / per_year if per_year > 0 else inf,
    }


@checked
def worth_it(
    before: Network, after: Network, assumptions: Assumptions, years: Years = 1, accuracy_lost: Share = 0.01
) -> tuple[bool, str]:
    """Say whether to compress, and why or why not; ``accuracy_lost`` is a share of 1 that a product bears."""
    lost, found = before.accuracy - after.accuracy, saving(before, after, assumptions, years)
    per_year, investment, net, _, days = found.values()
    if lost > accuracy_lost:
        return False, (
            f"no: it costs {100 * lost:.1f} points of accuracy, "
            f"and the product bears {100 * accuracy_lost:.1f}"
        )
    if net <= 0:
        return False, f"no: it saves {per_year:,.0f} a year and costs {investment:,.0f} to do"
    return True, f"yes: it pays for itself in {days:,.0f} days, and brings {net:,.0f} in {years:g} year(s)"


@checked
def tornado(
    value: Callable[[Assumptions], float], assumptions: Assumptions, ranges: by_name(several(Number))
) -> pd.DataFrame:
    """Move one assumption at a time and see which decides.

    Args:
        value: what is asked for, for example the net saving.
        assumptions: the middle.
        ranges: {assumption: (low, high)}.

    Returns:
        A row per assumption, the most decisive first: assumption, low, high, value_low, value_high, swing
        (the distance of the two values).
    """
    if not {*ranges} <= {*asdict(assumptions)} or any(len(ends) != 2 for ends in ranges.values()):
        raise ValueError(f"ranges must give a low and a high end for assumptions, got {ranges}")
    moved = {name: [value(replace(assumptions, **{name: end})) for end in ranges[name]] for name in ranges}
    rows = [(name, *ranges[name], *values, abs(values[1] - values[0])) for name, values in moved.items()]
    found = pd.DataFrame(rows, columns=["assumption", "low", "high", "value_low", "value_high", "swing"])
    return found.sort_values("swing", ascending=False, ignore_index=True)


@checked
def break_even(value: Callable[[Assumptions], float], assumptions: Assumptions, name: str) -> float:
    """Return where one assumption would have to stand for ``value`` to be 0, all others as they are.

    Args:
        value: what is asked for, for example the net saving; linear in the assumption.
        assumptions: the others.
        name: which one to move; not utilization, which divides.

    Returns:
        Its value at break-even, at least 0; infinite if there is none.
    """
    if name not in asdict(assumptions) or name == "utilization":
        raise ValueError(f"name must be one of the assumptions but utilization, got {name!r}")
    step = max(1.0, getattr(assumptions, name))
    start, end = (value(replace(assumptions, **{name: at})) for at in (0, step))
    crossing = step * start / (start - end) if start != end else inf
    return crossing if crossing >= 0 else inf


@checked
@dataclass(frozen=True)
class UseCase:
    """A kind of device, how it is used, and what one network may take of it. All of it is assumed.

    Attributes:
        times_slower: how many times longer an inference takes there than on the processor that was measured.
        watts: that its processor draws while it computes.
        devices: how many there are.
        inferences_per_device_per_day: how often each one uses the network.
        updates_per_year: how often each one downloads it.
        latency_ms: that one inference may take.
        memory_mb: that the network may fill, weights and all it needs to run.
        update_mb: that one download may have.
        joules_per_day: that a device may spend on it.
    """

    times_slower: Amount
    watts: Level
    devices: Amount
    inferences_per_device_per_day: Level
    updates_per_year: Level
    latency_ms: Amount
    memory_mb: Amount
    update_mb: Amount
    joules_per_day: Amount

    def service(self, **others: float) -> Assumptions:
        """Return the assumptions about all devices together, and ``others``, such as price_per_gb.

        The devices' owners pay for their processors and electricity.
        """
        return Assumptions(
            inferences_per_day=self.devices * self.inferences_per_device_per_day,
            downloads_per_year=self.devices * self.updates_per_year,
            watts=self.watts,
            **{"price_per_cpu_hour": 0} | others,
        )


@checked
def on_device(network: Network, times_slower: Amount) -> Network:
    """Return the network as it would be on a processor so many times slower: assumed, not measured."""
    return replace(network, latency_ms=network.latency_ms * times_slower)


@checked
def needs(network: Network, use: UseCase) -> dict[str, float]:
    """Return what a network takes of a device: latency_ms, memory_mb, update_mb, joules_per_day.

    Its memory is that of a process where one was measured, else that of the weights alone, which is less.
    """
    there = on_device(network, use.times_slower)
    return {
        "latency_ms": there.latency_ms,
        "memory_mb": there.process_mb or there.memory_mb,
        "update_mb": there.file_mb,
        "joules_per_day": energy_joules(there, use.service()) * use.inferences_per_device_per_day,
    }


@checked
def misses(network: Network, use: UseCase) -> list[str]:
    """Return the names of the budgets that a network does not fit into; none: it fits."""
    return [budget for budget, needed in needs(network, use).items() if needed > getattr(use, budget)]


@checked
def budgets(candidates: by_name(Network), uses: by_name(UseCase)) -> pd.DataFrame:
    """Compare what each network needs with what each use case allows, both by name.

    Returns:
        A row per use case, network and budget: use, budget, network, needed, allowed, share (needed over
        allowed; it fits up to 1).
    """
    rows = [
        (use, budget, name, needed, getattr(case, budget))
        for use, case in uses.items()
        for name, candidate in candidates.items()
        for budget, needed in needs(candidate, case).items()
    ]
    found = pd.DataFrame(rows, columns=["use", "budget", "network", "needed", "allowed"])
    return found.assign(share=found["needed"] / found["allowed"])
