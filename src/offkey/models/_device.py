"""Which device and dtype a model is loaded on and in."""

from pathlib import Path

import torch

from offkey.errors import BadValue

__all__ = ["choose_device", "choose_dtype", "is_native"]

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
        found = torch.accelerator.current_accelerator(check_available=True)
        return found if found is not None else torch.device("cpu")
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
