"""Where and in which precision the networks compute."""

import ctypes
import os
import platform
import resource
import sys
from pathlib import Path

import torch

from comparison.cli import UserError

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # of glibc's malloc.h


def pick_device(name: str) -> torch.device:
    """Return the device that --device names; `auto` takes CUDA, MPS or the CPU, in this order.

    Raises:
        UserError: no such device on this machine.
    """
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
            torch.cuda.set_device(device)  # of CUDA graphs, and of what names no device
    return device


def usable_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def set_threads(threads: int, local_world_size: int = 1, *, keep_memory: bool = True) -> None:
    """Give this process `threads` CPU threads, 0 for its share of the cores, and memory that it keeps.

    Raises:
        UserError: OMP_NUM_THREADS is not a number of threads, or several separated by commas.
    """
    usable = usable_cores()
    text = os.environ.get("OMP_NUM_THREADS") or str(usable)
    first = text.partition(",")[0].strip()  # of nested parallelism, which torch does not have
    if not first.isdecimal():
        raise UserError(f"OMP_NUM_THREADS must be a number of threads, not {text!r}")
    limit = int(first[:9])
    torch.set_num_threads(threads or max(1, min(limit, usable // local_world_size)))
    if keep_memory:
        keep_freed_memory()


def keep_freed_memory() -> None:
    """Let glibc reuse the memory of freed tensors instead of returning it to the system.

    The system hands out zeroed pages, one page fault each, and an update of a network frees and takes hundreds of
    megabytes: on two cores 9 to 12% of the time. What the environment says of these settings wins; other C libraries
    are left alone.
    """
    chosen = {"MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_"} & set(
        os.environ
    )
    if sys.platform != "linux" or chosen or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)  # an mmapped block goes back at once
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(M_TOP_PAD, 64 * 2**20)


def _cpu_facts() -> dict[str, str]:
    """Return what Linux says of the first processor, nothing elsewhere."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().split("\n\n")[0].splitlines() if cpuinfo.is_file() else []
    return {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}


def computes_bf16(device: torch.device) -> bool:
    """Return True if the device multiplies bfloat16 faster than float32.

    CPUs do so with AMX, and AMD's with AVX-512 too. Intel's AVX-512 instructions for bfloat16 run at half the rate:
    where AMX is missing, or hidden from a virtual machine, a matrix product reaches 160 GFLOP/s against 270 in float32.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    facts = _cpu_facts()
    flags = facts.get("flags", "").split()
    return "amx_bf16" in flags or ("avx512_bf16" in flags and facts.get("vendor_id") == "AuthenticAMD")


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """Return the autocast type for --precision: bfloat16, or None for float32.

    `float32` by name turns a GPU's TF32 off, which `auto` leaves on.
    """
    if precision == "float32" and device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    if precision == "bf16" or (precision == "auto" and computes_bf16(device)):
        return torch.bfloat16
    return None


def precision_name(dtype: torch.dtype | None) -> str:
    """Return `float32` for None, else the type's name."""
    return "float32" if dtype is None else str(dtype).removeprefix("torch.")


def describe_device(device: torch.device) -> str:
    """Return the device in words: the GPU's name, or the processor with its threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "mps":
        return f"{platform.processor() or platform.machine()} GPU (MPS)"
    return f"{_cpu_facts().get('model name', platform.machine())}, {torch.get_num_threads()} threads"


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def reset_peak_memory(device: torch.device) -> None:
    """Start a new peak on a GPU; the peak of a process on the CPU cannot be reset."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory_bytes(device: torch.device) -> int:
    """Return the peak of allocated GPU memory, or on a CPU of the resident process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type == "mps":
        return torch.mps.driver_allocated_memory()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
