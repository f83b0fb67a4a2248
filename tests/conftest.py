import contextlib
import os
from pathlib import Path

os.environ |= {
    "CUDA_VISIBLE_DEVICES": "",
    "ACCELERATE_USE_CPU": "true",
}  # the tests' numbers are those of a CPU

import pytest
import torch

from helpers.data import CIFAR10_FOLDER, HOME, cifar10_root, load_data
from helpers.files import keep

CIFAR10 = cifar10_root()


@pytest.fixture(scope="session")
def digits():
    return load_data("digits")


@pytest.fixture(scope="session")
def cifar10():
    if not (CIFAR10 / CIFAR10_FOLDER).exists():
        pytest.skip(f"CIFAR-10 is not in {CIFAR10}: load_data('cifar10') downloads it there")
    return load_data("cifar10", root=CIFAR10)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def pytest_terminal_summary(terminalreporter):
    skipped = terminalreporter.stats.get("skipped", [])
    reasons = sorted({str(report.longrepr[2]).removeprefix("Skipped: ") for report in skipped})
    with contextlib.suppress(OSError):  # a checkout that cannot be written
        keep(Path(os.environ.get("NNC_BUILD") or HOME / "build") / "skipped.txt", "\n".join(reasons).encode())
    if reasons:
        terminalreporter.section("skipped, and how to get it")
        for reason in reasons:
            terminalreporter.line(f"- {reason}")
