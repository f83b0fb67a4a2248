"""What the processor can do: 16-bit and 8-bit arithmetic, as its own description says, and its name."""

import functools
import os
import platform
from pathlib import Path

import torch

from helpers.types import checked

CPUINFO = Path("/proc/cpuinfo")


def cpuinfo() -> dict[str, str]:
    """Return what Linux says of the first core, by name; Windows and macOS have nobody to ask: empty."""
    lines = CPUINFO.read_text("utf-8").splitlines() if CPUINFO.exists() else []
    pairs = (line.partition(":") for line in reversed(lines))
    return {name.strip(): value.strip() for name, _, value in pairs}


def has_flag(*names: str) -> bool:
    """Whether the CPU lists one of these among its features ("flags" of an x86, "Features" of an Arm)."""
    return not {*names}.isdisjoint(f"{cpuinfo().get('flags')} {cpuinfo().get('Features')}".split())


@functools.cache
@checked
def has_bf16(device_type: str = "cpu") -> bool:
    """Whether processors of this type ("cpu", "cuda") compute in bfloat16 here, faster than emulated."""
    if device_type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device_type == "cpu" and has_flag("avx512_bf16", "amx_bf16", "bf16")


@functools.cache
@checked
def has_tiles(device_type: str = "cpu") -> bool:
    """Whether processors of this type have tile units for bfloat16 (Intel's AMX); only CPUs are asked."""
    return device_type == "cpu" and has_flag("amx_bf16")


def multiplies_int8() -> bool:
    """Whether the CPU multiplies int8 without saturating: x86 without VNNI does not, others do."""
    x86 = platform.machine().lower() in ("x86_64", "amd64", "x86", "i386", "i686")
    return not x86 or has_flag("avx512_vnni", "avx_vnni")


@checked
def describe_device(device: str | torch.device = "cpu") -> str:
    """Name the processor that ``device`` stands for ("cpu", "cuda:0"), and its units for 8-bit numbers."""
    kind = torch.device(device).type
    if kind == "cuda":
        return torch.cuda.get_device_name(device)
    if kind != "cpu":
        return f"{platform.processor() or platform.machine()} GPU"
    said = cpuinfo()
    name = said.get("model name") or platform.processor() or platform.machine()
    if "cpu family" in said:  # a cloud's processors of one name may be years apart
        name += f" (family {said['cpu family']}, model {said.get('model')})"
    units = [unit.upper() for unit in ("vnni", "amx") if unit in said.get("flags", "")]
    return ", ".join([name, f"{os.cpu_count()} cores", *units])
