"""The same work done in two ways, timed in turn in one process.

A model folder that wants to be measured holds pairs.py with a function `pairs(small) -> list[Pair]`, and
results/benchmark.py measures them. Imports torch only where it measures.
"""

import contextlib
import gc
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from comparison.runs import git_commit

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from comparison.replay import Recorder

TOLERANCE = 1e-4  # of results in float32 or float64, relative to the largest value
PROTOCOL = (
    "both paths in one process and in turn, after a warm-up call of each (on CUDA five), the order changing from round "
    "to round; device synchronised; seconds of one unit, medians over the rounds; the plain path in float32, on a GPU "
    "in TF32"
)


@dataclass(frozen=True)
class Settings:
    """What a pair is built for: where, and the autocast type of the fast path (None for float32)."""

    device: "torch.device"
    dtype: "torch.dtype | None"

    @property
    def record(self) -> "Recorder | None":
        """Return what records the work of the fast path, as the scripts do on CUDA."""
        from comparison.replay import cuda_graph

        return cuda_graph if self.device.type == "cuda" else None

    def replayed(self, network: "nn.Module") -> "nn.Module":
        """Return a network in eval mode as the scripts sample from it."""
        from comparison.replay import ReplayedNetwork

        return ReplayedNetwork(network) if self.record else network


@dataclass(frozen=True)
class Sides:
    """The two ways to do the same work; each call does all of it and may return anything."""

    plain: Callable[[], object]
    fast: Callable[[], object]


@dataclass(frozen=True)
class Pair:
    """A piece of work with a plain and a fast path.

    Attributes:
        name: one word, unique in its folder.
        what: the work in a few words, sizes included.
        build: makes both paths, on the device and with the precision asked for.
        images: per unit.
        unit: what the seconds are given for, such as `iteration`.
        units: done by one call.
        check: returns the largest difference of the two paths' results, relative to the largest value and both in
            float32 (or float64 where rounding is multiplied), or None where they need not agree.
        goals: ratio to reach on a CPU, by precision of the fast path.
        reference_seconds: lowest and highest time of one unit in the reference's own code, on two cores of an
            AVX512 CPU.
        reference_gflop: of one unit in the reference's own code, 2 x multiply-adds.
        counted: whether operations and arithmetic mean anything; False for work of other processes.
    """

    name: str
    what: str
    build: Callable[[Settings], Sides]
    images: int
    unit: str
    units: int = 1
    check: "Callable[[torch.device], float] | None" = None
    goals: Mapping[str, float] = field(default_factory=dict)
    reference_seconds: tuple[float, float] | None = None
    reference_gflop: float | None = None
    counted: bool = True


def difference(expected: "Iterable[Tensor]", found: "Iterable[Tensor]") -> float:
    """Return the largest |expected - found| over all entries, relative to the largest |expected|.

    Raises:
        ValueError: the numbers or shapes of the tensors differ, or a value is not finite.
    """
    largest = apart = 0.0
    for a, b in zip(expected, found, strict=True):
        if a.shape != b.shape:
            raise ValueError(f"shapes differ: {tuple(a.shape)}, {tuple(b.shape)}")
        if a.numel():
            wanted, gap = a.detach().double(), (a.detach().double() - b.detach().double()).abs().max().item()
            if not gap < float("inf"):
                raise ValueError("a value is not finite")
            largest, apart = max(largest, wanted.abs().max().item()), max(apart, gap)
    return apart / largest if largest else apart


def stir(network: "nn.Module", seed: int = 0) -> None:
    """Replace every weight by a random one of its layer's scale, for checks.

    Layers that start at zero would multiply a wrong branch away.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            noise = torch.randn(parameter.shape, generator=generator).to(parameter.device)
            if parameter.ndim > 1:
                parameter.copy_(noise / parameter[0].numel() ** 0.5)
            else:
                parameter.add_(0.1 * noise)


def pictures(count: int, size: int, seed: int = 0) -> "Tensor":
    """Draw (N, 3, S, S) uint8 pictures of blotches and grain, whose PNG files are as large as those of CIFAR-10."""
    import torch
    import torch.nn.functional as F

    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, 3, 5, 5, generator=generator)
    images = 50 * F.interpolate(coarse, size=(size, size), mode="bilinear")
    images += 4.5 * torch.randn(images.shape, generator=generator)
    return images.add(128).clamp(0, 255).to(torch.uint8)


def alternate(
    plain: Callable[[], object],
    fast: Callable[[], object],
    rounds: int,
    synchronize: Callable[[], object] = lambda: None,
    clock: Callable[[], float] = time.perf_counter,
    tick: Callable[[], object] = lambda: None,
) -> list[tuple[float, float]]:
    """Time both paths once per round, the plain one first in even rounds.

    Args:
        plain, fast: already warm.
        rounds: pairs of calls.
        synchronize: waits for the device.
        clock: seconds.
        tick: called after each round.

    Returns:
        Seconds of (plain, fast) by round.
    """

    def timed(call: Callable[[], object]) -> float:
        synchronize()
        start = clock()
        call()
        synchronize()
        return clock() - start

    times = []
    for number in range(rounds):
        if number % 2:
            fast_seconds = timed(fast)
            plain_seconds = timed(plain)
        else:
            plain_seconds = timed(plain)
            fast_seconds = timed(fast)
        times.append((plain_seconds, fast_seconds))
        tick()
    return times


def quartiles(values: Sequence[float]) -> tuple[float, float] | None:
    """Return the first and the third quartile, None of fewer than two values."""
    if len(values) < 2:
        return None
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, high


def summarize(times: Sequence[tuple[float, float]], units: int = 1) -> dict[str, Any]:
    """Turn the seconds of calls into medians per unit, their spread, and the ratio of plain to fast.

    Args:
        times: (plain, fast) seconds by round.
        units: done by one call.

    Returns:
        'plain' and 'fast' with 'seconds', 'interquartile_range' and 'rounds'; 'ratio', of the medians;
        'ratio_quartiles', of the rounds' own ratios. A spread is None for a single round.
    """
    summary: dict[str, Any] = {}
    for i, name in enumerate(("plain", "fast")):
        values = [time[i] / units for time in times]
        spread = quartiles(values)
        summary[name] = {
            "seconds": statistics.median(values),
            "interquartile_range": spread and spread[1] - spread[0],
            "rounds": values,
        }
    summary["ratio"] = summary["plain"]["seconds"] / summary["fast"]["seconds"]
    summary["ratio_quartiles"] = quartiles([plain / fast for plain, fast in times])
    return summary


def count_work(call: Callable[[], object]) -> dict[str, float]:
    """Call once and return its 'operations' (on tensors) and 'gflop' (2 x multiply-adds of matrix products and
    convolutions).
    """
    import torch
    from torch.utils import flop_counter
    from torch.utils._python_dispatch import TorchDispatchMode

    registry = dict(flop_counter.flop_registry)
    # A CPU's fused attention is the one kernel that torch's own table leaves out.
    for name, formula in (
        ("_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_flash_attention"),
        ("_scaled_dot_product_flash_attention_for_cpu_backward", "_scaled_dot_product_flash_attention_backward"),
    ):
        kernel = getattr(torch.ops.aten, name, None)
        if kernel is not None:
            registry.setdefault(kernel, flop_counter.flop_registry[getattr(torch.ops.aten, formula)])

    class Counter(TorchDispatchMode):
        operations, flop = 0, 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = kwargs or {}
            packet = func._overloadpacket
            if packet not in registry:  # in inference mode a composite operation arrives whole
                with self:
                    out = func.decompose(*args, **kwargs)
                if out is not NotImplemented:
                    return out
            out = func(*args, **kwargs)
            self.operations += 1
            if packet in registry:
                self.flop += registry[packet](*args, **kwargs, out_val=out)
            return out

    counter = Counter()
    with counter:
        call()
    return {"operations": counter.operations, "gflop": counter.flop / 1e9}


@contextlib.contextmanager
def without_tf32() -> Iterator[None]:
    """Let GPUs multiply float32 in full."""
    import torch

    backends: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [backend.allow_tf32 for backend in backends]
    for backend in backends:
        backend.allow_tf32 = False
    try:
        yield
    finally:
        for backend, allowed in zip(backends, before, strict=True):
            backend.allow_tf32 = allowed


def measure(pair: Pair, settings: Settings, rounds: int, tick: Callable[[], object]) -> dict[str, Any]:
    """Check, warm up and time a pair; return its entry of benchmark.json."""
    from comparison.device import precision_name, synchronize
    from comparison.replay import Replay

    with without_tf32():
        apart = pair.check(settings.device) if pair.check else None
    gc.collect()  # the check's networks, before the pair's own
    sides = pair.build(settings)
    calls = {"plain": sides.plain, "fast": sides.fast}
    work: dict[str, dict[str, float]] = {}
    for name, call in calls.items():
        if pair.counted:
            work[name] = {key: value / pair.units for key, value in count_work(call).items()}
        else:
            call()
        for _ in range(Replay.WARM_UP + 1 if settings.record else 0):
            call()
    tick()
    times = alternate(sides.plain, sides.fast, rounds, lambda: synchronize(settings.device), tick=tick)
    summary = summarize(times, pair.units)
    on_cpu = settings.device.type == "cpu"
    goal = pair.goals.get(precision_name(settings.dtype)) if on_cpu else None
    return {
        "name": pair.name,
        "what": pair.what,
        "images": pair.images,
        "unit": pair.unit,
        **{name: {**summary[name], **work.get(name, {})} for name in calls},
        "ratio": summary["ratio"],
        "ratio_quartiles": summary["ratio_quartiles"],
        "goal": goal,
        "goal_reached": goal and summary["ratio"] >= goal,
        "difference": apart,
        "agrees": None if apart is None else apart <= TOLERANCE,
        "reference": {"seconds": pair.reference_seconds, "gflop": pair.reference_gflop},
        "git_commit": git_commit(),
    }
