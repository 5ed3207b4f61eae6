"""What results/benchmark.py measures in this folder: a training update, steps of sampling, the reading of images.

The network is the paper's for CIFAR-10. Goals are ratios to reach on two cores of a CPU that
multiplies bfloat16 in hardware.
"""

import sys
import tempfile
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from comparison.pairs import Pair, Settings, Sides, difference, pictures, stir
from improved_diffusion.script_util import model_and_diffusion_defaults

if TYPE_CHECKING:
    import torch

PAPER = {
    **{**model_and_diffusion_defaults(), "image_size": 32, "num_channels": 128, "num_res_blocks": 3},
    **{"learn_sigma": True, "dropout": 0.3, "diffusion_steps": 4000, "noise_schedule": "cosine"},
}
TINY = {**PAPER, "image_size": 16, "num_channels": 32, "num_res_blocks": 1, "diffusion_steps": 100}
FULL = {"batch_size": 8, "drawn": 16, "steps": 4, "read": 8192, "read_batch": 128}
SMALL = {"batch_size": 4, "drawn": 4, "steps": 2, "read": 64, "read_batch": 16}


def pairs(small: bool) -> list[Pair]:
    """Return the pairs of this folder, of tiny networks if `small`."""
    flags, sizes = (TINY, SMALL) if small else (PAPER, FULL)
    n, drawn = sizes["batch_size"], sizes["drawn"]
    facts: dict[str, dict[str, Any]] = {"training": {}, "sampling": {}, "reading": {}}
    if not small:
        facts["training"] = {"goals": {"bfloat16": 2.0, "float32": 1.0}, "reference_seconds": (2.79, 2.79)}
        facts["sampling"] = {
            **{"goals": {"bfloat16": 2.3, "float32": 1.0}, "reference_seconds": (1.49, 1.49)},
            **{"reference_gflop": drawn * 16.8},
        }
        goals = dict.fromkeys(("bfloat16", "float32"), 68.0)
        facts["reading"] = {"goals": goals, "reference_seconds": (0.00027, 0.00027)}
    return [
        Pair(
            "training", f"one update, batch {n}, {flags['num_res_blocks']} blocks of {flags['num_channels']} channels",
            partial(build_training, flags, sizes), n, "update", check=partial(check_training, flags, sizes),
            **facts["training"],
        ),
        Pair(
            "sampling", f"a step of {drawn} images, one network evaluation of each",
            partial(samplers, flags, sizes), drawn, "step", units=sizes["steps"],
            check=partial(check_sampling, flags, sizes), **facts["sampling"],
        ),
        Pair(
            "reading", f"an epoch of {sizes['read']} PNG files as batches of {sizes['read_batch']}, one worker",
            partial(readers, flags, sizes), 1, "image", units=sizes["read"], check=partial(check_reading, flags, sizes),
            counted=False, **facts["reading"],
        ),
    ]  # fmt: skip


def networks(flags: dict[str, Any], settings: Settings, respacing: str = "", stirred: bool = False) -> tuple:
    """Return the plain network, the fast one with the same weights, and the process."""
    import copy

    import torch
    from improved_diffusion.script_util import create_model_and_diffusion
    from plain import PlainUNet

    sys.path.insert(0, str(Path(__file__).resolve().parent / "scripts"))
    from run_files import place

    torch.manual_seed(0)
    model, process = create_model_and_diffusion(**{**flags, "timestep_respacing": respacing})
    if stirred:
        stir(model)
    plain = PlainUNet(copy.deepcopy(model)).to(settings.device)
    place(model, settings.device, settings.dtype)
    return plain, model, process


def trainers(flags: dict[str, Any], settings: Settings, lr: float = 1e-4, stirred: bool = False) -> tuple:
    """Build the plain and the fast trainer with the same weights."""
    from comparison.replay import by_cuda_graph
    from improved_diffusion.training import Trainer
    from plain import PlainDiffusion, PlainTrainer

    plain, model, process = networks(flags, settings, stirred=stirred)
    replayed = by_cuda_graph if settings.record else None
    fast = Trainer(model, process, lr=lr, autocast_dtype=settings.dtype, replayed=replayed)
    return PlainTrainer(plain, PlainDiffusion(process), lr), fast


def real_images(flags: dict[str, Any], sizes: dict[str, int], device: "torch.device") -> "torch.Tensor":
    """Return a training batch, (N, 3, S, S) float32 in [-1, 1]."""
    from comparison.images import from_uint8

    return from_uint8(pictures(sizes["batch_size"], flags["image_size"])).to(device)


def build_training(flags: dict[str, Any], sizes: dict[str, int], settings: Settings) -> Sides:
    """Train on one batch again and again; reading is measured apart."""
    from comparison import rng
    from improved_diffusion.resample import create_named_schedule_sampler

    plain, fast = trainers(flags, settings)
    x_start, steps = real_images(flags, sizes, settings.device), count()
    sampler = create_named_schedule_sampler("uniform", fast.diffusion)

    def train_fast() -> None:
        step = next(steps)
        noise = rng.normal(x_start.shape, 0, step, "noise", device=settings.device)
        t, factors = sampler.sample(len(x_start), settings.device, rng.generator("cpu", 0, step, "t"))
        rng.seed_default(0, step, "dropout")
        fast.update(step, x_start, t, noise, factors)

    return Sides(lambda: plain.update(x_start), train_fast)


def check_training(flags: dict[str, Any], sizes: dict[str, int], device: "torch.device") -> float:
    """Compare the gradients of an update without dropout, whose masks the two paths draw differently."""
    import torch
    from comparison import rng

    plain, fast = trainers({**flags, "dropout": 0.0}, Settings(device, None), stirred=True)
    x_start = real_images(flags, sizes, device)
    noise = rng.normal(x_start.shape, 0, "noise", device=device)
    t = torch.linspace(0, flags["diffusion_steps"] - 1, len(x_start), device=device).long()  # t = 0 included
    plain.update(x_start, t, noise)
    fast.update(0, x_start, t, noise)
    return difference([p.grad for p in plain.parameters], [p.grad for p in fast.model.parameters()])


def samplers(flags: dict[str, Any], sizes: dict[str, int], settings: Settings) -> Sides:
    """Return the two ways to draw the images 0, 1, ... of seed 0 in a few ancestral steps."""
    import torch
    from comparison.rng import SampleNoise
    from plain import PlainDiffusion

    plain, model, process = networks(flags, settings, str(sizes["steps"]))
    for network in (plain, model):
        network.eval().requires_grad_(False)
    model = settings.replayed(model)
    indices, size, device = range(sizes["drawn"]), flags["image_size"], settings.device

    def step_noise() -> Any:
        return partial(SampleNoise(0, indices, device).normal, (3, size, size))

    def draw_plain() -> torch.Tensor:
        noise = step_noise()
        return PlainDiffusion(process).sample(plain, noise("x_T"), noise)

    def draw_fast() -> torch.Tensor:
        noise = step_noise()
        x = noise("x_T")
        autocast = torch.autocast(device.type, settings.dtype, enabled=settings.dtype is not None)
        with torch.inference_mode(), autocast:
            return process.p_sample_loop(model, x.shape, noise=x, step_noise=noise)

    return Sides(draw_plain, draw_fast)


def check_sampling(flags: dict[str, Any], sizes: dict[str, int], device: "torch.device") -> float:
    """Compare the networks' outputs, and the images that the samplers make of one and the same output.

    Apart, because the first steps of the cosine schedule multiply a network's rounding by thousands.
    """
    import torch
    from comparison.rng import SampleNoise
    from plain import PlainDiffusion

    plain, model, process = networks(flags, Settings(device, None), str(sizes["steps"]), stirred=True)
    noise = partial(SampleNoise(0, range(sizes["drawn"]), device).normal, (3, flags["image_size"], flags["image_size"]))
    x, t = noise("x_T"), torch.linspace(0, 999, sizes["drawn"], device=device)
    with torch.no_grad():
        expected, found = plain.eval()(x, t), model.eval()(x, t)

    def network(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return 0.1 * expected

    image = PlainDiffusion(process).sample(network, x, noise)
    image_found = process.p_sample_loop(network, x.shape, noise=x, step_noise=noise)
    return max(difference([expected], [found]), difference([image], [image_found]))


def picture_files(flags: dict[str, Any], number: int) -> tuple:
    """Write pictures as PNG; return their (N, 3, S, S) uint8 values, the paths, and the folder, which goes with it."""
    from PIL import Image

    folder = tempfile.TemporaryDirectory()
    images = pictures(number, flags["image_size"])
    paths = [Path(folder.name) / f"{i:05d}.png" for i in range(number)]
    for path, image in zip(paths, images.permute(0, 2, 3, 1).contiguous().numpy(), strict=True):
        Image.fromarray(image).save(path)
    return images, paths, folder


def readers(flags: dict[str, Any], sizes: dict[str, int], settings: Settings) -> Sides:
    """Read an epoch: files decoded by a worker each time, or once for all and then kept as uint8."""
    from comparison.batches import BatchStream
    from comparison.images import ImageSet, fingerprint
    from plain import epoch

    images, paths, folder = picture_files(flags, sizes["read"])
    image_set = ImageSet(images, None, (), "pictures", fingerprint(images))
    stream = BatchStream(image_set, sizes["read_batch"], 0, flip=True, device=settings.device)
    epochs = count()

    def read_plain(folder: Any = folder) -> None:  # which holds the files as long as they are read
        for _ in epoch(paths, flags["image_size"], sizes["read_batch"], settings.device):
            pass

    def read_fast() -> None:
        first = next(epochs) * stream.steps_per_epoch
        for step in range(first, first + stream.steps_per_epoch):
            stream.batch(step)

    return Sides(read_plain, read_fast)


def check_reading(flags: dict[str, Any], sizes: dict[str, int], device: "torch.device") -> float:
    """Compare the pixels of some pictures."""
    import torch
    from comparison.images import from_uint8
    from plain import Files

    images, paths, _folder = picture_files(flags, 16)
    files = Files(paths, flags["image_size"])
    return difference([torch.from_numpy(files[i]) for i in range(len(files))], from_uint8(images))
