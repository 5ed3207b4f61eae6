"""Sampling speed by batch size, arithmetic and memory: one protocol for all models, written to timing.json."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from comparison.cli import UserError
from comparison.device import describe_device, peak_memory_bytes, reset_peak_memory, synchronize
from comparison.files import json_matches, write_json
from comparison.gpu.cuda_graphs import GraphedFunction
from comparison.runs import versions
from comparison.sampling.draw import EvaluationCounter

SCHEMA = 1
BATCH_SIZES = (1, 16, 128)
LIMIT = 15  # times min_seconds: limit of the seconds of one call
MIN_RISE = 1.02  # throughput ratio below which the batch size is no longer doubled

Attempt = tuple[dict[str, Any] | None, str]  # entry of a batch size, or None and the reason


def protocol(min_seconds: float) -> str:
    """Return the description of the measurement in timing.json."""
    return (
        f"median of calls that draw a whole batch, repeated for {min_seconds:g} s (one run where a call takes longer), "
        "eval and inference mode, weights loaded, after one warm-up batch, device synchronised; loading, conversion to "
        f"uint8 and disk writes excluded; batch sizes whose call would exceed {LIMIT * min_seconds:g} s left out; "
        "GFLOP are 2 x multiply-adds of convolutions and matrix products of one image; memory is the peak of the GPU's "
        "allocations, or on a CPU of the process so far"
    )


def write_benchmark(
    path: Path,
    draw: Callable[[range], Tensor],
    networks: Sequence[nn.Module],
    evaluate: Callable[[int], object],
    *,
    image_size: int,
    device: torch.device,
    facts: dict[str, Any],
    min_seconds: float,
) -> None:
    """Write timing.json unless it holds the same measurement already; arguments as in `benchmark`."""
    wanted = {**_with_machine(facts, device), "image_size": image_size}
    if json_matches(path, {**wanted, "protocol": protocol(min_seconds)}):
        print(f"{path}: measured already; delete it to measure anew", flush=True)
        return
    timing = benchmark(
        draw, networks, evaluate, image_size=image_size, device=device, facts=facts, min_seconds=min_seconds
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, timing)
    first, best = timing["batches"][0], timing["best"]
    print(
        f"{path}: {first['seconds']:.4g} s for a batch of {first['batch_size']}; at best "
        f"{best['images_per_second']:.4g} images/s, in batches of {best['batch_size']}; "
        f"{timing['nfe']:g} evaluations of {timing['gflop_per_evaluation']:.3g} GFLOP",
        flush=True,
    )


def benchmark(
    draw: Callable[[range], Tensor],
    networks: Sequence[nn.Module],
    evaluate: Callable[[int], object],
    *,
    image_size: int,
    device: torch.device,
    facts: dict[str, Any],
    min_seconds: float,
) -> dict[str, Any]:
    """Measure a sampler at fixed batch sizes, then at doubled ones while throughput rises.

    Args:
        draw: maps n image numbers to (n, 3, S, S); its calls are timed.
        networks: modules whose evaluations and parameters are counted.
        evaluate: calls one network once on a batch of the given size.
        image_size: S, pixels.
        device: device that `draw` uses.
        facts: further entries of timing.json: model, sampler, checkpoint, network, precision.
        min_seconds: minimum seconds of measurement per batch size; a call may take 15 times as long.

    Returns:
        The content of timing.json: seconds are medians of one call, memory is in bytes.

    Raises:
        UserError: the smallest batch does not fit in memory.
    """
    for network in networks:
        network.eval()
    gflop = count_flop(lambda: evaluate(1)) / 1e9
    batches: list[dict[str, Any]] = []
    skipped: list[dict[str, Any]] = []
    with torch.inference_mode():
        stopwatch = _Stopwatch(draw, networks, evaluate, device, min_seconds)
        for size in BATCH_SIZES:
            entry, reason = stopwatch.attempt(size)
            if entry:
                batches.append(entry)
            elif not batches:
                raise UserError(f"a batch of {size} cannot be drawn on this device: {reason}")
            else:
                skipped.append({"batch_size": size, "reason": reason})
        if skipped:
            reason = skipped[-1]["reason"]
        else:
            larger, reason = sweep_batch_sizes(stopwatch.attempt, batches[-1])
            batches += larger
    best = max(batches, key=lambda entry: entry["images_per_second"])
    return {
        "schema": SCHEMA,
        "protocol": protocol(min_seconds),
        **_with_machine(facts, device),
        "image_size": image_size,
        "parameters": sum(p.numel() for network in networks for p in network.parameters()),
        "nfe": stopwatch.nfe,
        "gflop_per_evaluation": _digits(gflop),
        "gflop_per_image": _digits(gflop * stopwatch.nfe),
        "convolution_gflop_per_second": _digits(convolution_speed(device, facts.get("precision", "float32"))),
        "batches": batches,
        "best": {name: best[name] for name in ("batch_size", "images_per_second")},
        "largest": {"batch_size": batches[-1]["batch_size"], "reason": reason},
        "skipped": skipped,
    }


def count_flop(evaluate: Callable[[], object]) -> int:
    """Count the floating-point operations of a call: 2 x multiply-adds of convolutions, matrix products, attention."""
    # Fused attention has no formula on a CPU, and compiled code hides its operations.
    eager = torch.compiler.set_stance("force_eager")
    with eager, torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        evaluate()
    return counter.get_total_flops()


def convolution_speed(device: torch.device, precision: str, seconds: float = 0.3) -> float:
    """Measure one large convolution, in 10^9 operations per second, as a yardstick of the device.

    A 3 x 3 convolution of 128 channels on 64 images of 32 pixels, the main operation of these networks, at a size that
    keeps the device busy. `precision` is float32, bfloat16 or float16.
    """
    dtype = getattr(torch, precision)
    x = torch.randn(64, 128, 32, 32, device=device, dtype=dtype).to(memory_format=torch.channels_last)
    weight = torch.randn(128, 128, 3, 3, device=device, dtype=dtype).to(memory_format=torch.channels_last)
    with torch.inference_mode():
        timing = _repeat(lambda: torch.nn.functional.conv2d(x, weight, padding=1), device, seconds)
    return 2 * 64 * 32**2 * 128**2 * 9 / timing.median / 1e9


def _repeat(call: Callable[[], object], device: torch.device, seconds: float) -> Any:
    """Time a call repeatedly for so many seconds."""

    def finished() -> None:
        call()
        synchronize(device)

    from torch.utils.benchmark import Timer  # warns on its import where there is a CUDA toolkit but no GPU

    timer = Timer("call()", globals={"call": finished}, num_threads=torch.get_num_threads())
    return timer.blocked_autorange(min_run_time=seconds)


def sweep_batch_sizes(attempt: Callable[[int], Attempt], last: dict[str, Any]) -> tuple[list[dict[str, Any]], str]:
    """Double the batch size while throughput rises by 2% or more.

    Args:
        attempt: measures a batch size, see `_Stopwatch.attempt`.
        last: entry of the batch size to start from.

    Returns:
        The new entries, the last of which may be slower, and the reason for the end.
    """
    entries: list[dict[str, Any]] = []
    while True:
        entry, reason = attempt(2 * last["batch_size"])
        if entry is None:
            return entries, reason
        entries.append(entry)
        if entry["images_per_second"] < MIN_RISE * last["images_per_second"]:
            return entries, "throughput no longer rises"
        last = entry


@dataclass
class _Stopwatch:
    """Measures batch sizes in ascending order; arguments as in `benchmark`.

    Attributes:
        nfe: evaluations per image, counted by hooks during the first call.
        expected: estimated seconds of the next call.
        measured: last measured batch size, 0 for none.
    """

    draw: Callable[[range], Tensor]
    networks: Sequence[nn.Module]
    evaluate: Callable[[int], object]
    device: torch.device
    min_seconds: float
    nfe: float = 0.0
    expected: float = 0.0
    measured: int = 0

    def __post_init__(self) -> None:
        self._memory_at_start = peak_memory_bytes(self.device)
        self.limit_seconds = LIMIT * self.min_seconds

    def attempt(self, size: int) -> Attempt:
        """Return the entry of a batch size and "", or None and the reason."""
        reset_peak_memory(self.device)  # before the evaluations: a graph replay allocates nothing later
        try:
            if reason := self._skip_reason(size):
                return None, reason
            entry = self._measure(size)
        except (RuntimeError, MemoryError) as error:
            out_of_memory = isinstance(error, torch.OutOfMemoryError | MemoryError)
            if not out_of_memory and "can't allocate memory" not in str(error):
                raise
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            return None, "memory ran out"
        self.measured = size
        return entry, ""

    def _skip_reason(self, size: int) -> str:
        """Return why a batch size should be skipped, "" if it should not; the first one is never skipped."""
        if not self.measured:
            return ""
        free = available_memory_bytes() if self.device.type == "cpu" else None
        used = peak_memory_bytes(self.device) - self._memory_at_start
        if free is not None and used * size / self.measured > free:
            return "memory would run out"
        self._estimate_seconds(size)
        if self.expected > self.limit_seconds:
            return f"one call would take about {self.expected:.2g} s, more than {self.limit_seconds:g} s"
        return ""

    def _estimate_seconds(self, size: int) -> None:
        """Estimate the seconds of a call from the fastest of three evaluations."""
        for _ in range(GraphedFunction.WARM_UP + 1 if self.device.type == "cuda" else 1):
            self.evaluate(size)
        self.expected = self.nfe * min(self._time(lambda: self.evaluate(size)) for _ in range(3))

    def _measure(self, size: int) -> dict[str, Any]:
        def call() -> Tensor:
            return self.draw(range(size))

        counter = EvaluationCounter(self.networks)
        try:
            seconds = self._time(call)  # the warm-up, and the only run if it exceeds the limit
        finally:
            counter.close()
        if not self.nfe:
            self.nfe = counter.images / size
            self._estimate_seconds(size)
        runs, spread = 1, None
        if self.expected <= self.min_seconds:
            timing = _repeat(call, self.device, self.min_seconds)
            blocks = len(timing.raw_times)
            seconds, runs = timing.median, blocks * timing.number_per_run
            spread = timing.iqr if blocks > 1 else None
        elif self.expected <= self.limit_seconds:
            seconds = self._time(call)
        return {
            "batch_size": size,
            "seconds": _digits(seconds),
            "interquartile_range": None if spread is None else _digits(spread),
            "runs": runs,
            "images_per_second": _digits(size / seconds),
            "peak_memory_bytes": peak_memory_bytes(self.device),
        }

    def _time(self, call: Callable[[], object]) -> float:
        synchronize(self.device)
        start = time.perf_counter()
        call()
        synchronize(self.device)
        return time.perf_counter() - start


def available_memory_bytes() -> int | None:
    """Return the memory that this process may still allocate, None if it is unknown (not Linux)."""
    meminfo = Path("/proc/meminfo")
    if not meminfo.is_file():
        return None
    lines = [line.split() for line in meminfo.read_text().splitlines()]
    free = next((1024 * int(fields[1]) for fields in lines if fields[0] == "MemAvailable:"), None)
    limit, used = (Path("/sys/fs/cgroup") / name for name in ("memory.max", "memory.current"))
    if free is not None and limit.is_file() and used.is_file() and (text := limit.read_text().strip()).isdigit():
        free = min(free, max(0, int(text) - int(used.read_text())))
    return free


def _with_machine(facts: dict[str, Any], device: torch.device) -> dict[str, Any]:
    return {**facts, "device": describe_device(device), "threads": torch.get_num_threads(), "versions": versions()}


def _digits(value: float) -> float:
    return float(f"{value:.6g}")
