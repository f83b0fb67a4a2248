import inspect

import pytest
import torch

from helpers import processor

ZEN4 = """processor\t: 0
cpu family\t: 25
model\t\t: 17
model name\t: AMD EPYC
flags\t\t: fpu avx2 avx512_bf16 avx512_vnni

processor\t: 1
model name\t: another
flags\t\t: fpu
"""


@pytest.fixture
def cpuinfo(tmp_path, monkeypatch):
    """Return what writes /proc/cpuinfo; until then there is none, as on Windows and macOS."""
    monkeypatch.setattr(processor, "CPUINFO", tmp_path / "cpuinfo")
    return lambda text: text and (tmp_path / "cpuinfo").write_text(text)


@pytest.mark.parametrize(
    ("text", "bf16", "tiles"),
    [("flags: avx2 fma", False, False), ("flags: avx512_bf16", True, False), ("flags: amx_bf16 amx_tile", True, True),
     ("Features\t: asimd bf16", True, False), ("flags: xbf16 amx_bf16x", False, False), (None, False, False)],
)  # fmt: skip
def test_bf16_and_tiles_are_where_the_processor_says_so(text, bf16, tiles, cpuinfo):
    cpuinfo(text)
    assert inspect.unwrap(processor.has_bf16)("cpu") is bf16
    assert inspect.unwrap(processor.has_tiles)("cpu") is tiles
    assert not inspect.unwrap(processor.has_tiles)("cuda")


@pytest.mark.parametrize(
    ("text", "machine", "expected"),
    [("flags: avx2 fma", "x86_64", False), ("flags: avx2 avx512_vnni", "x86_64", True),
     ("flags: avx2 avx_vnni", "x86_64", True), ("Features: asimd", "aarch64", True), (None, "AMD64", False), (None, "arm64", True)],
)  # fmt: skip
def test_int8_is_halved_in_range_where_the_processor_would_saturate(
    text, machine, expected, cpuinfo, monkeypatch
):
    cpuinfo(text)
    monkeypatch.setattr(processor.platform, "machine", lambda: machine)
    assert processor.multiplies_int8() is expected


def test_a_processor_is_named_with_its_units(cpuinfo, monkeypatch):
    monkeypatch.setattr(processor.os, "cpu_count", lambda: 2)
    cpuinfo(ZEN4)
    assert processor.describe_device() == "AMD EPYC (family 25, model 17), 2 cores, VNNI"
    assert processor.describe_device(torch.device("mps")).endswith(" GPU")


def test_a_processor_that_nobody_can_ask_still_has_a_name(cpuinfo, monkeypatch):
    monkeypatch.setattr(processor.platform, "processor", lambda: "")
    monkeypatch.setattr(processor.platform, "machine", lambda: "arm64")
    assert processor.describe_device().startswith("arm64, ")
