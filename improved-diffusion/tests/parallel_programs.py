"""What test_parallel.py starts as several processes (parallel_programs.py NAME OUT), and does alone to compare."""

import os
import signal
import sys
import time
import weakref
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from comparison import rng
from comparison.sampling.draw import draw_samples
from diffusion_testing import tiny_flags
from improved_diffusion import dist_util
from improved_diffusion.resample import LossSecondMomentResampler
from improved_diffusion.script_util import create_diffusion, create_model_and_diffusion
from improved_diffusion.training import Trainer

BATCH = 8
KEPT: list[Trainer] = []  # to the interpreter's end, as a script keeps what it makes outside of functions
GROUPS: list[weakref.ref[torch.distributed.ProcessGroup]] = []


def rows() -> slice:
    """This process's part of the batch."""
    share = BATCH // dist_util.get_world_size()
    return slice(dist_util.get_rank() * share, (dist_util.get_rank() + 1) * share)


def trained(steps: int = 3, **options) -> dict[str, torch.Tensor]:
    """Train a tiny network; return its first and last gradient, its weights, their average and the losses."""
    torch.manual_seed(dist_util.get_rank())  # so that the processes begin apart, and DDP has to join them
    changes = {name: options.pop(name) for name in list(options) if name in tiny_flags()}
    flags = tiny_flags(learn_sigma=True, num_channels=16, norm_groups=8, **changes)
    model, diffusion = create_model_and_diffusion(**flags)
    for parameter in model.parameters():  # the zero-initialised layers would hide what lies before them
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02)
    trainer = Trainer(model, diffusion, lr=1e-3, ema_rates=(0.5,), **options)
    KEPT.append(trainer)
    found = {}
    for step in range(steps):
        x = rng.normal((BATCH, 3, 16, 16), 0, step, "x").clamp(-1, 1)
        t = rng.randint(100, (BATCH,), 0, step, "t")
        noise = rng.normal(x.shape, 0, step, "noise")
        trainer.update(step, *(value[rows()] for value in (x, t, noise)), torch.linspace(0.5, 1.5, BATCH)[rows()])
        found.setdefault("first gradient", flat(p.grad for p in model.parameters()))
        found["gradient"] = flat(p.grad for p in model.parameters())
    names = create_model_and_diffusion(**flags)[0].state_dict().keys()
    assert trainer.model.state_dict().keys() == trainer.ema[0.5].state_dict().keys() == names
    found["weights"], found["average"] = flat(model.parameters()), flat(trainer.ema[0.5].parameters())
    means = trainer.meter.read()
    return {**found, "means": torch.tensor([means[name] for name in sorted(means)])}


def compiled(**options) -> dict[str, torch.Tensor]:
    """Train the same network with its passes traced as for a compiler, without the compiler's wait."""
    from torch._dynamo import lookup_backend

    real, traced = torch.compile, []

    def trace(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]):
        traced.append(graph)
        return lookup_backend("aot_eager")(graph, inputs)

    with mock.patch.object(torch, "compile", lambda network: real(network, backend=trace)):
        found = trained(compile_network=True, **options)
    assert traced
    return found


def flat(tensors) -> torch.Tensor:
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


def resampled(parts: list[int]) -> np.ndarray:
    """Give a sampler the losses of 130 images, in batches of which each process has `parts[rank]` images."""
    sampler = LossSecondMomentResampler(create_diffusion(tiny_flags(diffusion_steps=4, noise_schedule="cosine")))
    start = sum(parts[: dist_util.get_rank()])
    for step in range(10):
        ts, losses = rng.randint(4, (13,), step, "t"), rng.normal((13,), step, "loss").abs()
        mine = slice(start, start + parts[dist_util.get_rank()])
        sampler.update_with_local_losses(ts[mine], losses[mine])
    return sampler.weights()


def drawn(out: Path, stop_at: int = 1000) -> None:
    """Draw 21 images in batches of 4; fail before the image `stop_at`."""
    network = torch.nn.Identity()

    def draw(indices: range) -> torch.Tensor:
        if stop_at in indices:
            raise KeyboardInterrupt
        return network(rng.SampleNoise(0, indices, "cpu").normal((3, 8, 8), 0)).clamp(-1, 1)

    shape = {"num_samples": 21, "batch_size": 4, "image_size": 8}
    draw_samples(draw, [network], out=out, **shape, device=torch.device("cpu"), facts={}, warm_up=False)


def together(out: Path) -> None:
    """Do what two processes do alike."""
    rank = dist_util.get_rank()
    assert dist_util.broadcast_object({"rank": rank}) == {"rank": 0}
    tensors = [torch.full((2, 3), float(rank)), torch.full((4,), rank), torch.full((1,), float(rank))]
    dist_util.sync_params(tensors)
    assert not any(tensor.any() for tensor in tensors)
    results = {"recomputed": trained(microbatch=3, use_checkpoint=True)}
    if "compiled" in sys.argv:
        results["compiled"] = compiled(microbatch=2, use_checkpoint=True)
    for name, values in results.items():
        for key, value in values.items():
            other = value.clone()
            dist_util.sync_params([other])
            assert torch.equal(value, other), (name, key)
    results["weights"] = torch.from_numpy(resampled([5, 8]))
    drawn(out / "samples.npz")
    GROUPS.append(weakref.ref(torch.distributed.group.WORLD))
    assert GROUPS[0]()
    if dist_util.get_rank() == 0:
        torch.save(results, out / "results.pt")
    dist_util.barrier()
    assert dist_util.load_state_dict(out / "results.pt", map_location="cpu").keys() == results.keys()


def fail(out: Path) -> None:
    """Let the second process fail while the first one waits for it."""
    if dist_util.get_rank() == 1:
        raise ValueError("the second process fails")
    dist_util.barrier()


def die(out: Path) -> None:
    """Let the second process be killed while the first one waits for it."""
    if dist_util.get_rank() == 1:
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGKILL)
    dist_util.barrier()


def main() -> None:
    torch.set_num_threads(1)
    dist_util.setup_dist("cpu")
    {"together": together, "fail": fail, "die": die}[sys.argv[1]](Path(sys.argv[2]))
    dist_util.shutdown()
    assert all(group() is None for group in GROUPS)  # or a thread of it may abort the process at the end


if __name__ == "__main__":
    main()
