"""What a user waits for: a line in front of a few processors, simulated; the tail is what a mean hides."""

import heapq

import numpy as np

from helpers.business import Amount, Network
from helpers.types import Count, Seed, checked


@checked
def waiting(
    network: Network, per_second: Amount, workers: Count = 1, *, requests: Count = 20_000, seed: Seed = 0
) -> dict[str, float]:
    """Simulate requests that arrive at random and wait in one line for the first worker that is free.

    Args:
        network: its latency is the same for every request.
        per_second: requests, on average (a Poisson process).
        workers: processors.
        requests: how many to simulate.
        seed: of the arrivals.

    Returns:
        busy (share of the workers' time; from 1 on the line only grows), and from arrival to answer: p50_ms,
        p99_ms (one request in a hundred takes longer: the tail).
    """
    arrivals = np.random.default_rng(seed).exponential(1000 / per_second, requests).cumsum()
    free, took = [0.0] * workers, []
    for arrival in arrivals:
        done = max(arrival, heapq.heappop(free)) + network.latency_ms
        heapq.heappush(free, done)
        took.append(done - arrival)
    middle, tail = np.percentile(took, [50, 99])
    busy = per_second * network.latency_ms / 1000 / workers
    return {"busy": busy, "p50_ms": float(middle), "p99_ms": float(tail)}
