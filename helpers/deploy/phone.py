"""On a phone: the commands that time an exported file on Android, and what their output says.

LiteRT's benchmark_model (https://ai.google.dev/edge/litert/models/measurement) and ExecuTorch's
executor_runner (https://github.com/pytorch/executorch, devtools/scripts/benchmark_android.sh) are programs
built for Android, pushed to the phone with adb and run there. The commands and the forms of the output were
taken from the tools' documentation and published logs; nothing here was run on a phone by us.
"""

import os
import re
import shlex
import shutil
import statistics
import subprocess

from helpers.deploy.runtimes import existing
from helpers.types import AnyPath, Count, checked, path

FOLDER = "/data/local/tmp"  # the one folder on an Android phone that adb may write to and run programs from
Network = path(".tflite", ".pte")


@checked
def phone_commands(
    path: Network, runner: AnyPath, *, threads: Count = 1, repeats: Count = 50, device: str | None = None
) -> list[list[str]]:
    """Return the adb commands that push a file and its runner to a phone and time it there, in order.

    Args:
        path: the network, ending in .tflite or .pte.
        runner: the program, built for the phone: benchmark_model for .tflite, executor_runner for .pte.
        threads: of the runner.
        repeats: timed runs.
        device: the phone's serial number, where several are connected (``adb devices`` lists them).

    Returns:
        Commands as lists of arguments. The last one prints what ``parse_benchmark_model`` or
        ``parse_executor_runner`` reads.
    """
    adb = ["adb", *(["-s", device] if device else [])]
    there = {file: f"{FOLDER}/{file.name}" for file in (runner, path)}
    push = [[*adb, "push", os.fspath(file), place] for file, place in there.items()]
    program, network = map(shlex.quote, there.values())  # adb shell hands its words to a shell on the phone
    push.append([*adb, "shell", "chmod", "+x", program])
    if path.suffix == ".tflite":
        options = [f"--graph={network}", f"--num_threads={threads}", f"--num_runs={repeats}"]
        return [*push, [*adb, "shell", program, *options]]
    options = [
        f"--model_path={network}",
        f"--cpu_threads={threads}",
        f"--num_executions={repeats}",
        "--print_output=none",
    ]
    clear, log = [*adb, "logcat", "-c"], [*adb, "logcat", "-d", "-s", "ExecuTorch:I"]
    return [*push, clear, [*adb, "shell", program, *options], log]


@checked
def run_on_phone(
    path: Network, runner: AnyPath, *, threads: Count = 1, repeats: Count = 50, device: str | None = None
) -> dict[str, float]:
    """Time a file on the connected phone; see ``phone_commands`` for the arguments. Not run on a phone by us.

    Returns:
        What ``parse_benchmark_model`` (.tflite) or ``parse_executor_runner`` (.pte) reads.

    Raises:
        RuntimeError: adb is not installed, or a command failed; the message says which, and what it printed.
        ValueError: the output is not of the documented form.
    """
    commands = phone_commands(
        existing(path), existing(runner), threads=threads, repeats=repeats, device=device
    )
    if shutil.which("adb") is None:
        way_out = "install Android's platform tools (apt install adb), or type the commands elsewhere"
        raise RuntimeError(f"adb is not installed. Way out: {way_out}")
    for command in commands:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        printed = done.stdout + done.stderr
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} failed ({done.returncode}): {printed.strip()[-500:]}")
    return parse_benchmark_model(printed) if path.suffix == ".tflite" else parse_executor_runner(printed)


@checked
def parse_benchmark_model(printed: str) -> dict[str, float]:
    """Read what LiteRT's benchmark_model prints. Parsed from documented output, not from a phone of ours.

    Args:
        printed: with the line "Inference timings in us: Init: ..., First inference: ..., Warmup (avg): ...,
            Inference (avg): ...".

    Returns:
        init_ms, first_ms, warmup_ms, latency_ms (the mean of the timed runs); where printed also repeats,
        latency_low_ms and latency_high_ms (the fastest and the slowest run), median_ms, and memory_mb (added
        since the tool began, approximately; MB as the tool counts them).
    """
    number = r"\d{1,15}(?:\.\d*)?(?:e[+-]?\d{1,2})?(?![\de.])"
    line = (
        rf"Inference timings in us: Init: (?P<init_ms>{number}), First inference: (?P<first_ms>{number}), "
        rf"Warmup \(avg\): (?P<warmup_ms>{number}), Inference \(avg\): (?P<latency_ms>{number})"
    )
    found = _line(line, printed, "benchmark_model's line 'Inference timings in us: ...'")
    result = {name: float(value) / 1e3 for name, value in found.groupdict().items()}
    runs = re.findall(r"count=.*", printed[: found.start()])  # the warm-up's line, then the timed runs'
    facts = dict(re.findall(rf"(\w+)=({number})", runs[-1])) if runs else {}
    result |= {"repeats": int(float(facts["count"]))} if "count" in facts else {}
    kept = {"min": "latency_low_ms", "max": "latency_high_ms", "median": "median_ms"}
    result |= {kept[key]: float(value) / 1e3 for key, value in facts.items() if key in kept}
    memory = re.search(rf"[Mm]emory footprint[^:]*\(MB\): init={number} overall=({number})", printed)
    return result | ({"memory_mb": float(memory[1])} if memory else {})


@checked
def parse_executor_runner(printed: str) -> dict[str, float]:
    """Read what ExecuTorch's executor_runner logs. Parsed from documented output, not from a phone of ours.

    Args:
        printed: the log (on Android: logcat's), with the line "Model executed successfully N time(s) in ...
            ms." and, in newer versions, a line "Iteration i of N: ... ms" for each run.

    Returns:
        repeats, and latency_ms: the median of the runs after the first where each is logged, else the mean of
        all; first_ms, latency_low_ms and latency_high_ms (the fastest and the slowest after the first) and
        load_ms where they are logged.
    """
    number = r"(\d{1,15}(?:\.\d*)?)"
    line = rf"Model executed successfully ([1-9]\d{{0,8}}) time\(s\) in {number} ms"
    found = _line(line, printed, "executor_runner's line 'Model executed successfully ...'")
    result = {"repeats": int(found[1]), "latency_ms": float(found[2]) / int(found[1])}
    load = re.search(rf"Model loaded in {number} ms", printed)
    result |= {"load_ms": float(load[1])} if load else {}
    times = [float(time) for time in re.findall(rf"Iteration \d+ of \d+: {number} ms", printed)]
    if times:
        later = times[1:] or times
        result |= {"first_ms": times[0], "latency_ms": statistics.median(later)}
        result |= {"latency_low_ms": min(later), "latency_high_ms": max(later)}
    return result


def _line(pattern: str, printed: str, what: str) -> re.Match:
    found = re.search(pattern, printed)
    if found is None:
        raise ValueError(f"printed must hold {what}, got {printed.strip()[-200:]!r}")
    return found
