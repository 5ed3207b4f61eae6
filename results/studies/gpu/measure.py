#!/usr/bin/env python3
"""Time single updates and network evaluations on a GPU: launched one by one or recorded, with plain or fused norms.

    python results/studies/gpu/measure.py --device cuda

The networks are those of the set `gpu` in flags.sh. Prints milliseconds, and profiles of the recorded updates. On a
CPU tiny networks show that it works.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT / folder) for folder in ("results", "improved-diffusion", "denoising-diffusion-gan", "gans")]

from comparison.cli import make_parser, run  # noqa: E402

Call = Callable[[int], object]
START = time.perf_counter()


def main(args: argparse.Namespace) -> None:
    """Measure one thing after the other."""
    import ddgan.layers
    import improved_diffusion.nn
    from comparison.device import pick_device

    meter = Meter(pick_device(args.device))
    modules: tuple[Any, ...] = (improved_diffusion.nn, ddgan.layers)
    builders = {"improved DDPM": ddpm, "DDGAN": ddgan_pair}
    for name, build in builders.items():
        network, update, evaluate = build(meter, recorded=True)
        meter.clock(f"{name}: update, recorded, fused", update)
        meter.profile(update)
        meter.evaluations(name, network.eval(), evaluate)
    fused = [module.is_fused for module in modules]
    for module in modules:
        module.is_fused = lambda x: False
    for name, build in builders.items():
        network, update, evaluate = build(meter, recorded=True)
        meter.clock(f"{name}: update, recorded", update)
        meter.clock(f"{name}: evaluation of {meter.large}", evaluate(network.eval(), meter.large), 5)
    for module, function in zip(modules, fused, strict=True):
        module.is_fused = function
    for name, build in builders.items():
        meter.clock(f"{name}: update, fused", build(meter, recorded=False)[1], 5)
    for recorded in (False, True):
        meter.clock(f"DCGAN: iteration{', recorded' if recorded else ''}", dcgan(meter, recorded), 40)


class Meter:
    """A device with what is drawn and fed there.

    Attributes:
        batch: images of an update.
        large: images of an evaluation that no one would record.
        record: makes CUDA graphs; None on a CPU.
    """

    def __init__(self, device: Any):
        import torch
        from comparison.replay import cuda_graph

        self.device, self.small = device, device.type == "cpu"
        self.batch, self.large = (4, 8) if self.small else (128, 500)
        self.record = None if self.small else cuda_graph
        self.x = 2 * torch.rand(self.large, 3, 32, 32, device=device) - 1
        self.t = torch.ones(self.large, dtype=torch.int64, device=device)
        self.z = torch.randn(self.large, 100, device=device)

    def clock(self, name: str, call: Call, calls: int = 20, warm: int = 5) -> None:
        """Print the milliseconds of a call, and those that the host needs for it."""
        from comparison.device import peak_memory_bytes, synchronize

        start = time.perf_counter()
        for i in range(warm):
            call(i)
        synchronize(self.device)
        warmed = time.perf_counter()
        for i in range(calls):
            call(warm + i)
        launched = time.perf_counter()
        synchronize(self.device)
        each, host = (1000 * (end - warmed) / calls for end in (time.perf_counter(), launched))
        gib = peak_memory_bytes(self.device) / 2**30
        line = f"{name}: {each:.2f} ms, host {host:.2f} ms, first {warm}: {warmed - start:.1f} s, mem {gib:.1f} GiB"
        print(f"[{time.perf_counter() - START:5.1f}] {line}", flush=True)

    def profile(self, call: Call, rows: int = 16) -> None:
        """Print the kernels that take most of a call."""
        from comparison.device import synchronize
        from torch.profiler import ProfilerActivity
        from torch.profiler import profile as Profile

        with Profile(activities=[ProfilerActivity.CPU if self.small else ProfilerActivity.CUDA]) as found:
            for i in range(2):
                call(25 + i)
            synchronize(self.device)
        key = "self_cpu_time_total" if self.small else "self_device_time_total"
        events = sorted(found.key_averages(), key=lambda event: -getattr(event, key))
        total, count = sum(getattr(event, key) for event in events), sum(event.count for event in events)
        print(f"profile: {total / 2000:.1f} ms of kernels per call, {count // 2} kernels")
        for event in events[:rows]:
            print(f"   {getattr(event, key) / 2000:7.2f} ms {event.count // 2:5d}x {event.key[:150]}", flush=True)

    def evaluations(self, name: str, network: Any, evaluate: Callable[[Any, int], Call]) -> None:
        """Print the milliseconds of evaluations of several sizes, the small ones recorded too."""
        from comparison.replay import ReplayedNetwork

        for size in (self.large, 1):
            self.clock(f"{name}: evaluation of {size}, fused", evaluate(network, size), 5)
        if self.record:
            recorded = ReplayedNetwork(network, self.record)
            for size in (1, 16, 128):
                self.clock(f"{name}: evaluation of {size}, recorded, fused", evaluate(recorded, size), 10)


def in_bf16(meter: Meter, call: Callable[[], object]) -> Call:
    """Return a call without gradients under autocast."""
    import torch

    def evaluate(i: int) -> None:
        with torch.inference_mode(), torch.autocast(meter.device.type, torch.bfloat16):
            call()

    return evaluate


def ddpm(meter: Meter, recorded: bool) -> tuple[Any, Call, Callable[[Any, int], Call]]:
    """Return the network, an update and what evaluates a network on so many images."""
    import torch
    from comparison.replay import by_cuda_graph
    from improved_diffusion.script_util import create_model_and_diffusion, model_and_diffusion_defaults
    from improved_diffusion.training import Trainer

    flags = {**model_and_diffusion_defaults(), "image_size": 32, "learn_sigma": True, "dropout": 0.1}
    flags |= {"diffusion_steps": 4000, "noise_schedule": "cosine", "num_channels": 128, "num_res_blocks": 2}
    flags |= {"num_channels": 32, "num_res_blocks": 1, "norm_groups": 8} if meter.small else {}
    torch.manual_seed(0)
    network, process = create_model_and_diffusion(**flags)
    network.to(meter.device).to(memory_format=torch.channels_last)
    how: dict[str, Any] = {"replayed": by_cuda_graph if recorded and meter.record else None}
    trainer = Trainer(network, process, lr=2e-4, ema_rates=[0.999], autocast_dtype=torch.bfloat16, **how)
    x = meter.x[: meter.batch]
    t, noise = torch.randint(0, 4000, (len(x),), device=meter.device), torch.randn_like(x)

    def evaluate(network: Any, size: int) -> Call:
        return in_bf16(meter, lambda: network(meter.x[:size], meter.t[:size]))

    return network, lambda step: trainer.update(step, x, t, noise), evaluate


def ddgan_pair(meter: Meter, recorded: bool) -> tuple[Any, Call, Callable[[Any, int], Call]]:
    """Return the generator, an update without R1 and what evaluates a generator on so many images."""
    import torch
    from ddgan.checkpoints import seeded_networks
    from ddgan.ema import Ema
    from ddgan.options import defaults
    from ddgan.process import DenoisingProcess
    from ddgan.training import Batch, Trainer

    config = {**defaults(), "num_channels_dae": 128, "ngf": 64, "n_mlp": 4, "num_res_blocks": 2}
    config |= {"num_channels_dae": 32, "ngf": 16, "num_res_blocks": 1} if meter.small else {}
    generator, discriminator = seeded_networks(config, "small", 0)
    for network in (generator, discriminator):
        network.to(meter.device).to(memory_format=torch.channels_last)
    rates: dict[str, Any] = {"lr_g": 1.6e-4, "lr_d": 1.25e-4, "r1_gamma": 0.02, "lazy_reg": 10**6}
    how: dict[str, Any] = {"autocast_dtype": torch.bfloat16, "record": meter.record if recorded else None}
    process = DenoisingProcess(4).to(meter.device)
    trainer = Trainer(generator, discriminator, process, Ema(generator, 0.999), seed=0, nz=100, **rates, **how)
    x = meter.x[: meter.batch]

    def evaluate(network: Any, size: int) -> Call:
        return in_bf16(meter, lambda: network(meter.x[:size], meter.t[:size], meter.z[:size]))

    return generator, lambda step: trainer.update([Batch(x, None, step + 1)], step + 1), evaluate


def dcgan(meter: Meter, recorded: bool) -> Call:
    """Return an iteration of DCGAN."""
    import torch
    from gan.options import PRESETS
    from gan.training import build_gan

    options = {**PRESETS["dcgan"], "image_size": 32, "nz": 100, "ngf": 64, "ndf": 64, "nc": 3, "seed": 0}
    options |= {"label_smoothing": "none", "batch_size": meter.batch, "g_lr": 2e-4, "d_lr": 2e-4}
    game = build_gan(options, meter.device, torch.bfloat16, record=meter.record if recorded else None)
    x, z = meter.x[: meter.batch], meter.z[: meter.batch]
    return lambda step: game.train_step(x, z, step)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = make_parser(__doc__)
    parser.add_argument("--device", default="auto", help="auto, cuda, cuda:N or cpu")
    return parser.parse_args(argv)


if __name__ == "__main__":
    run(lambda: main(parse_args()))
