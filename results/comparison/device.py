"""Device, threads, memory and precision of the networks' computation."""

import ctypes
import os
import platform
import resource
import sys
from pathlib import Path

import torch

from comparison.cli import UserError

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # from glibc's malloc.h


def pick_device(name: str) -> torch.device:
    """Return the device of --device (`auto`: CUDA, MPS or the CPU, in this order); raise UserError if it is missing."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"--device {name}: not usable on this machine ({reason})") from None
    if device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True
        if device.index is not None:
            torch.cuda.set_device(device)  # for CUDA graphs and calls without a device
    return device


def usable_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def set_threads(threads: int, local_world_size: int = 1) -> None:
    """Set the number of CPU threads, 0 for this process's share of the cores, and keep freed memory.

    Raises:
        UserError: OMP_NUM_THREADS is not a number of threads, or several separated by commas.
    """
    usable = usable_cores()
    text = os.environ.get("OMP_NUM_THREADS") or str(usable)
    first = text.partition(",")[0].strip()  # the other numbers are for nested parallelism
    if not first.isdecimal():
        raise UserError(f"OMP_NUM_THREADS must be a number of threads, not {text!r}")
    limit = int(first[:9])
    torch.set_num_threads(threads or max(1, min(limit, usable // local_world_size)))
    keep_freed_memory()


def keep_freed_memory() -> None:
    """Make glibc reuse the memory of freed tensors instead of returning it to the system.

    The system returns zeroed pages, one page fault each, and an update frees and allocates hundreds of megabytes: 9 to
    12% of the time on two cores. Environment variables that set malloc's options take precedence.
    """
    names = {"MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_"}
    if sys.platform != "linux" or names & set(os.environ) or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)  # mmapped blocks would be returned at once
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(M_TOP_PAD, 64 * 2**20)


def _cpu_facts() -> dict[str, str]:
    """Return the entries of /proc/cpuinfo for the first processor, none if the file is missing."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().split("\n\n")[0].splitlines() if cpuinfo.is_file() else []
    return {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}


def computes_bf16(device: torch.device) -> bool:
    """Return True if the device multiplies bfloat16 faster than float32.

    CPUs do with AMX, and AMD's also with AVX-512. Intel's AVX-512 instructions for bfloat16 are slower than float32: a
    matrix product reaches 160 instead of 270 GFLOP/s.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    facts = _cpu_facts()
    flags = facts.get("flags", "").split()
    return "amx_bf16" in flags or ("avx512_bf16" in flags and facts.get("vendor_id") == "AuthenticAMD")


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """Return the autocast dtype of --precision, None for float32; an explicit `float32` also turns TF32 off."""
    if precision == "float32" and device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    if precision == "bf16" or (precision == "auto" and computes_bf16(device)):
        return torch.bfloat16
    return None


def precision_name(dtype: torch.dtype | None) -> str:
    """Return the name of an autocast dtype, `float32` for None."""
    return "float32" if dtype is None else str(dtype).removeprefix("torch.")


def describe_device(device: torch.device) -> str:
    """Return the GPU's name, or the processor's name with the number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "mps":
        return f"{platform.processor() or platform.machine()} GPU (MPS)"
    return f"{_cpu_facts().get('model name', platform.machine())}, {torch.get_num_threads()} threads"


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished all launched work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def reset_peak_memory(device: torch.device) -> None:
    """Reset the peak memory of a CUDA GPU; that of a CPU process cannot be reset."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory_bytes(device: torch.device) -> int:
    """Return the peak memory in bytes: of the GPU's allocations, or of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type == "mps":
        return torch.mps.driver_allocated_memory()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
