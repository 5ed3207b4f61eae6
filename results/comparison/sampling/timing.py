"""How fast a sampler draws: time by batch size, arithmetic and memory, by one protocol for every model."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from comparison.cli import UserError
from comparison.device import describe_device, peak_memory_bytes, reset_peak_memory, synchronize
from comparison.files import agrees, write_json
from comparison.gpu.replay import Replay
from comparison.runs import versions
from comparison.sampling.draw import EvaluationCounter

SCHEMA = 1
BATCH_SIZES = (1, 16, 128)
LIMIT = 15  # times min_seconds: how long one call may take
LEAST_RISE = 1.02  # of throughput, for doubling the batch size once more

Attempt = tuple[dict[str, Any] | None, str]  # what was measured, or why nothing


def protocol(min_seconds: float, limit_seconds: float) -> str:
    """Return the sentence on the measurement that timing.json carries."""
    return (
        f"median of calls that draw a whole batch, repeated for {min_seconds:g} s (one run where a call takes longer), "
        "eval and inference mode, weights loaded, after one warm-up batch, device synchronised; loading, conversion to "
        f"uint8 and disk writes excluded; batch sizes whose call would exceed {limit_seconds:g} s left out; GFLOP are "
        "2 x multiply-adds of convolutions and matrix products of one image; memory is the peak of the GPU's "
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
    """Write timing.json unless it holds this very measurement already; arguments as in `benchmark`."""
    wanted = {**_facts(device, facts), "image_size": image_size, "protocol": protocol(min_seconds, LIMIT * min_seconds)}
    if agrees(path, wanted):
        print(f"{path}: measured already; delete it to measure anew", flush=True)
        return
    found = benchmark(
        draw, networks, evaluate, image_size=image_size, device=device, facts=facts, min_seconds=min_seconds
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, found)
    first, best = found["batches"][0], found["best"]
    print(
        f"{path}: {first['seconds']:.4g} s for a batch of {first['batch_size']}; at best "
        f"{best['images_per_second']:.4g} images/s, in batches of {best['batch_size']}; "
        f"{found['nfe']:g} evaluations of {found['gflop_per_evaluation']:.3g} GFLOP",
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
    batch_sizes: Sequence[int] = BATCH_SIZES,
    largest: int | None = None,
    min_seconds: float = 2.0,
    limit_seconds: float | None = None,
) -> dict[str, Any]:
    """Measure a sampler at fixed batch sizes, then at doubled ones until that no longer pays.

    Args:
        draw: maps image numbers to (n, 3, S, S); a call for n images is what is timed.
        networks: whose evaluations and parameters are counted.
        evaluate: calls one of the networks once, on a batch of so many images.
        image_size: S, pixels.
        device: that the drawing keeps busy.
        facts: what timing.json also says: model, sampler, checkpoint, network, precision.
        batch_sizes: measured in ascending order; the smallest one always.
        largest: batch size at which doubling ends, None for no such bound.
        min_seconds: spent on each batch size, at least.
        limit_seconds: of one call; a batch size that would take longer is left out. None for 15 x min_seconds.

    Returns:
        The content of timing.json: seconds are medians of one call, memory is in bytes.

    Raises:
        UserError: the memory does not hold the smallest batch.
    """
    limit_seconds = limit_seconds or LIMIT * min_seconds
    for network in networks:
        network.eval()
    gflop = count_flop(lambda: evaluate(1)) / 1e9
    batches: list[dict[str, Any]] = []
    skipped: list[dict[str, Any]] = []
    with torch.inference_mode():
        stopwatch = _Stopwatch(draw, networks, evaluate, device, min_seconds, limit_seconds)
        for size in sorted(batch_sizes):
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
            larger, reason = grow(stopwatch.attempt, batches[-1], largest)
            batches += larger
    best = max(batches, key=lambda entry: entry["images_per_second"])
    return {
        "schema": SCHEMA,
        "protocol": protocol(min_seconds, limit_seconds),
        **_facts(device, facts),
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
    """Count the floating-point operations of a call: 2 x multiply-adds of convolutions, products and attention."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    # Fused attention has no formula on a CPU, and compiled code hides its operations; as plain ones they are counted.
    plain = torch.compiler.set_stance("force_eager")
    with plain, torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        evaluate()
    return counter.get_total_flops()


def convolution_speed(device: torch.device, precision: str, seconds: float = 0.3) -> float:
    """Measure what the device reaches on one large convolution, in 10^9 operations a second.

    A 3 x 3 convolution of 128 channels on 64 images of 32 pixels: what networks of this kind consist of, at a size that
    keeps the device busy. The share of it that a sampler reaches says how much of the time is overhead.

    Args:
        device: to measure.
        precision: `float32`, `bfloat16` or `float16`.
        seconds: spent on it, at least.
    """
    from torch.utils.benchmark import Timer

    dtype = getattr(torch, precision)
    x = torch.randn(64, 128, 32, 32, device=device, dtype=dtype).to(memory_format=torch.channels_last)
    weight = torch.randn(128, 128, 3, 3, device=device, dtype=dtype).to(memory_format=torch.channels_last)

    def call() -> None:
        torch.nn.functional.conv2d(x, weight, padding=1)
        synchronize(device)

    with torch.inference_mode():
        timer = Timer("call()", globals={"call": call}, num_threads=torch.get_num_threads())
        median = timer.blocked_autorange(min_run_time=seconds).median
    return 2 * 64 * 32**2 * 128**2 * 9 / median / 1e9


def grow(
    attempt: Callable[[int], Attempt], last: dict[str, Any], largest: int | None = None
) -> tuple[list[dict[str, Any]], str]:
    """Double the batch size as long as throughput rises by 2% or more.

    Args:
        attempt: measures a batch size, or says why not.
        last: entry of the batch size to start from.
        largest: never exceeded.

    Returns:
        The new entries, the last of which may be the one that no longer paid, and why there are no more.
    """
    found: list[dict[str, Any]] = []
    while True:
        size = 2 * last["batch_size"]
        if largest and size > largest:
            return found, "the largest batch size asked for"
        entry, reason = attempt(size)
        if entry is None:
            return found, reason
        found.append(entry)
        if entry["images_per_second"] < LEAST_RISE * last["images_per_second"]:
            return found, "throughput no longer rises"
        last = entry


class _Stopwatch:
    """Measures one batch size after another, in ascending order.

    Attributes:
        nfe: evaluations per image, counted by hooks during the first call.
    """

    def __init__(
        self,
        draw: Callable[[range], Tensor],
        networks: Sequence[nn.Module],
        evaluate: Callable[[int], object],
        device: torch.device,
        min_seconds: float,
        limit_seconds: float,
    ):
        self._draw, self._networks, self._evaluate, self._device = draw, networks, evaluate, device
        self._min_seconds, self._limit_seconds = min_seconds, limit_seconds
        self._memory_at_start = peak_memory_bytes(device)
        self._size = 0  # measured last
        self._expected = 0.0  # seconds of a call for the next one
        self.nfe = 0.0

    def attempt(self, size: int) -> Attempt:
        """Measure a batch size, or say why not."""
        reset_peak_memory(self._device)  # before any evaluation of this size: what is replayed allocates nothing
        try:
            if reason := self._refuse(size):
                return None, reason
            entry = self._measure(size)
        except (RuntimeError, MemoryError) as error:
            if not _memory_ran_out(error):
                raise
            if self._device.type == "cuda":
                torch.cuda.empty_cache()
            return None, "memory ran out"
        self._size = size
        return entry, ""

    def _refuse(self, size: int) -> str:
        """Say why a batch size should not be tried, "" if it may; the first one always may."""
        if not self._size:
            return ""
        free = available_memory_bytes() if self._device.type == "cpu" else None
        used = peak_memory_bytes(self._device) - self._memory_at_start
        if free is not None and used * size / self._size > free:
            return "memory would run out"
        self._expect(size)
        if self._expected > self._limit_seconds:
            return f"one call would take about {self._expected:.2g} s, more than {self._limit_seconds:g} s"
        return ""

    def _expect(self, size: int) -> None:
        """Estimate the seconds of a call by the fastest of a few evaluations, which other work disturbs least."""
        for _ in range(Replay.WARM_UP + 1 if self._device.type == "cuda" else 1):
            self._evaluate(size)
        self._expected = self.nfe * min(self._time(lambda: self._evaluate(size)) for _ in range(3))

    def _measure(self, size: int) -> dict[str, Any]:
        counter = EvaluationCounter(self._networks)
        try:
            seconds = self._time(lambda: self._draw(range(size)))  # the warm-up
        finally:
            counter.close()
        if not self.nfe:
            self.nfe = counter.images / size
            self._expect(size)
        runs, spread = 1, None
        if self._expected <= self._min_seconds:
            seconds, spread, runs = self._repeat(size)
        elif self._expected <= self._limit_seconds:
            seconds = self._time(lambda: self._draw(range(size)))
        # else the warm-up is the one run: a second call of that length would tell little
        return {
            "batch_size": size,
            "seconds": _digits(seconds),
            "interquartile_range": None if spread is None else _digits(spread),
            "runs": runs,
            "images_per_second": _digits(size / seconds),
            "peak_memory_bytes": peak_memory_bytes(self._device),
        }

    def _time(self, call: Callable[[], object]) -> float:
        synchronize(self._device)
        start = time.perf_counter()
        call()
        synchronize(self._device)
        return time.perf_counter() - start

    def _repeat(self, size: int) -> tuple[float, float | None, int]:
        """Return the median and the interquartile range of a call's seconds, and the number of calls."""
        from torch.utils.benchmark import Timer

        def call() -> None:
            self._draw(range(size))
            synchronize(self._device)

        timer = Timer("call()", globals={"call": call}, num_threads=torch.get_num_threads())
        found = timer.blocked_autorange(min_run_time=self._min_seconds)
        blocks = len(found.raw_times)
        return found.median, found.iqr if blocks > 1 else None, blocks * found.number_per_run


def available_memory_bytes() -> int | None:
    """Return how much memory this process may still take, or None where Linux does not say."""
    meminfo = Path("/proc/meminfo")
    if not meminfo.is_file():
        return None
    lines = [line.split() for line in meminfo.read_text().splitlines()]
    free = next((1024 * int(words[1]) for words in lines if words[0] == "MemAvailable:"), None)
    limit, used = (Path("/sys/fs/cgroup") / name for name in ("memory.max", "memory.current"))
    if free is not None and limit.is_file() and used.is_file() and (text := limit.read_text().strip()).isdigit():
        free = min(free, max(0, int(text) - int(used.read_text())))
    return free


def _memory_ran_out(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def _facts(device: torch.device, facts: dict[str, Any]) -> dict[str, Any]:
    return {**facts, "device": describe_device(device), "threads": torch.get_num_threads(), "versions": versions()}


def _digits(value: float) -> float:
    return float(f"{value:.6g}")
