"""What a model computes with: the device, the dtype, and how many threads."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from offkey.errors import BadValue

__all__ = ["Threads", "choose_device", "choose_dtype", "choose_threads", "is_native"]

_CPUS = Path("/sys/devices/system/cpu")
_QUOTA = Path("/sys/fs/cgroup/cpu.max")
_DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}


def choose_device(device: str | torch.device) -> torch.device:
    """The device asked for; ``auto`` is the accelerator where there is one, else the CPU.

    Raises:
        BadValue: no such device on this machine.
    """
    if device == "auto":
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise BadValue(
            f"{device} cannot be used here ({str(error).splitlines()[0]})",
            where="device",
            mend="Use auto, or cpu",
        ) from error
    return chosen


def choose_dtype(dtype: str | torch.dtype) -> torch.dtype | None:
    """The dtype asked for, or ``None`` for ``auto``.

    Raises:
        BadValue: not a floating-point dtype that models compute in.
    """
    if dtype == "auto":
        return None
    if isinstance(dtype, torch.dtype) and dtype in _DTYPES.values():
        return dtype
    if isinstance(dtype, str) and dtype.removeprefix("torch.") in _DTYPES:
        return _DTYPES[dtype.removeprefix("torch.")]
    raise BadValue(
        f"{dtype} is not a dtype to compute in",
        where="dtype",
        mend="Use auto, float32, bfloat16, float16 or float64",
    )


def is_native(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether the device has arithmetic of its own for this dtype, so that it is not emulated."""
    if dtype == torch.float32:
        return True
    if device.type == "cpu":
        return dtype == torch.float64 or _on_cpu(dtype)
    if device.type == "cuda":
        if dtype == torch.bfloat16:
            return bool(torch.cuda.is_bf16_supported(including_emulation=False))
        return dtype in (torch.float16, torch.float64)
    return dtype == torch.float16


def _on_cpu(dtype: torch.dtype) -> bool:
    wanted = {
        torch.bfloat16: {"avx512_bf16", "amx_bf16", "bf16"},
        torch.float16: {"amx_fp16"},
    }.get(dtype, set())
    return bool(wanted & _cpu_flags())


def _cpu_flags() -> set[str]:
    known: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    flags = {name for name, has in known.items() if has is True}
    if "arm_bf16" in flags:
        flags.add("bf16")
    if flags:
        return flags

    info = Path("/proc/cpuinfo")
    if not info.exists():
        return set()
    lines = info.read_text("utf-8", errors="replace").splitlines()
    return {
        flag
        for line in lines
        if line.lower().startswith(("flags", "features"))
        for flag in line.partition(":")[2].split()
    }


@dataclass(frozen=True)
class Threads:
    """How many threads compute, and why.

    Attributes:
        count: threads that one operation is spread over.
        cores: physical cores that this process may use.
        reason: where the count comes from.
        load: mean number of runnable processes in the last minute; ``None`` where not known.
        spins: idle threads wait by spinning, which on a busy machine slows every pass.
    """

    count: int
    cores: int
    reason: str
    load: float | None
    spins: bool

    @property
    def busy(self) -> bool:
        """Whether other processes use more than half a core beyond the cores left free."""
        return self.load is not None and self.load > max(self.cores - self.count, 0) + 0.5

    def __str__(self) -> str:
        text = f"{self.count} thread{'s' if self.count != 1 else ''} ({self.reason})"
        if not self.busy:
            return text
        text += f"; the machine is busy (load {self.load:.1f} on {self.cores} cores)"
        if self.spins and self.count > 1:
            text += ", so set OMP_WAIT_POLICY=PASSIVE before the start, or use fewer threads"
        return text


def choose_threads(threads: int | Literal["auto"] = "auto") -> Threads:
    """Sets how many threads torch computes with.

    ``auto`` keeps ``OMP_NUM_THREADS`` where it is set; else it takes one thread for each physical
    core that this process may use, less those that others keep busy if waiting threads spin.

    Raises:
        BadValue: fewer than one thread.
    """
    cores, load, spins = _cores(), _load(), _spins()
    if threads == "auto":
        count, reason = _automatic(cores, load, spins)
    elif isinstance(threads, int) and threads >= 1:
        count, reason = threads, "as asked"
    else:
        what = f"{threads!r} is not a number of threads"
        raise BadValue(what, where="threads", mend="Use auto, or 1 or more")
    if count != torch.get_num_threads():
        torch.set_num_threads(count)
    return Threads(count, cores, reason, load, spins)


def _automatic(cores: int, load: float | None, spins: bool) -> tuple[int, str]:
    if os.environ.get("OMP_NUM_THREADS"):
        return torch.get_num_threads(), "OMP_NUM_THREADS"
    taken = min(round(load or 0.0), cores - 1) if spins else 0
    if taken:
        return cores - taken, f"{cores} physical cores, {taken} of them busy"
    return cores, f"{cores} physical core{'s' if cores != 1 else ''}"


def _spins() -> bool:
    return os.environ.get("OMP_WAIT_POLICY", "").upper() != "PASSIVE"


def _load() -> float | None:
    try:
        return os.getloadavg()[0]
    except (OSError, AttributeError):  # Windows has none
        return None


def _cores() -> int:
    allowed = _allowed()
    physical = {_siblings(cpu) for cpu in allowed}
    return max(1, min(len(physical), _quota() or len(physical)))


def _allowed() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def _siblings(cpu: int) -> str:
    """What the hardware threads of one physical core have in common."""
    listed = _CPUS / f"cpu{cpu}" / "topology" / "thread_siblings_list"
    return listed.read_text("ascii").strip() if listed.exists() else str(cpu)


def _quota() -> int | None:
    if not _QUOTA.exists():
        return None
    quota, _, period = _QUOTA.read_text("ascii").partition(" ")
    return None if quota == "max" else max(1, int(quota) // int(period))
