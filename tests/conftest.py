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
LONGEST = (  # files that take a minute or more, begun first: else one process is left alone with one of them at the end
    "test_browser.py",
    "test_export_formats.py",
    "test_benchmark.py",
    "test_training.py",
    "test_serving.py",
    "test_architectures_export.py",
    "test_kills.py",
    "test_machines.py",
    "test_01_distillation.py",
    "test_02_pruning.py",
    "test_05_deployment.py",
    "test_00_start_here.py",
    "test_04_combined.py",
    "test_readme.py",
    "test_bad_arguments.py",
)


def pytest_collection_modifyitems(items):
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(LONGEST)))


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
