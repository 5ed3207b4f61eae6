"""Build networks from configurations, and save and load the checkpoints of a training run."""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from comparison.checkpoints import load_checkpoint, load_torch, save_checkpoint, save_torch
from comparison.cli import UserError
from torch import Tensor

from ddgan.discriminator import Discriminator, PlainDiscriminator
from ddgan.domain import Domain
from ddgan.generator import Generator, GeneratorConfig
from ddgan.nvlabs import looks_like_nvlabs, published_state, translate_generator
from ddgan.options import ARCHITECTURE, MODEL, check_architecture, defaults, is_value
from ddgan.training import Trainer


def make_generator(config: Mapping[str, Any]) -> Generator:
    """Build a generator from the flags, and num_classes if there are classes; other keys are ignored."""
    names = {field.name for field in fields(GeneratorConfig)}
    options = {name: value for name, value in config.items() if name in names}
    if config.get("domain", "pixel") != "pixel":
        domain = Domain.of(config)
        options |= {"num_channels": domain.num_channels, "image_size": domain.size, "bounds": domain.bounds()}
    return Generator(GeneratorConfig(**options))


def generator_from_nvlabs(state_dict: Mapping[str, Tensor], config: Mapping[str, Any]) -> Generator:
    """Build a generator of the flags `config` and load a published state dict; ValueError or RuntimeError if unfit."""
    generator = make_generator(config)
    generator.load_state_dict(translate_generator(generator, state_dict))
    return generator


def save_generator(
    path: Path, weights: Mapping[str, Tensor], config: Mapping[str, Any], *, step: int, images_seen: int
) -> None:
    """Write netG_<epoch>.pth: the weights to sample with, and `config`, all flags of the training.

    With --class_cond the config also has num_classes and class_names, one per class.
    """
    payload = {
        "kind": "generator",
        "config": dict(config),
        "step": step,
        "images_seen": images_seen,
        "generator": {name: value.detach().cpu() for name, value in weights.items()},
    }
    save_checkpoint(path, payload, model=MODEL)


def load_generator(path: Path, given: Mapping[str, Any]) -> tuple[Generator, dict[str, Any]]:
    """Load a generator from netG_<epoch>.pth, this project's or a published one.

    Args:
        path: checkpoint file.
        given: flags from the command line. They must agree with a checkpoint of this project; a published one, which
            has no flags, is built from them and the published defaults.

    Returns:
        The generator on the CPU, in eval mode, and its configuration.

    Raises:
        UserError: the file is missing, damaged or of another model, or a flag disagrees.
    """
    payload = load_torch(path)
    if isinstance(payload, Mapping) and looks_like_nvlabs(payload):
        config = {**defaults(), **given}
        config.pop("dataset", None)
        check_architecture(config)
        if config["class_cond"]:
            raise UserError(f"{path}: --class_cond: published weights are unconditional; leave out the flag")
        try:
            return generator_from_nvlabs(payload, config).eval(), {**config, "use_ema": True}
        except (RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"{path}: published weights that do not fit the given flags ({reason})") from None
    payload = load_checkpoint(path, model=MODEL)
    if payload.get("kind") != "generator":
        raise UserError(f"{path}: holds the state of a training, not a generator; use a netG_<epoch>.pth")
    config = payload.get("config", {})
    check_config(path, config)
    check_agreement(path, config, given)
    try:
        generator = make_generator(config)
        generator.load_state_dict(payload["generator"])
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: weights that do not fit the flags in the file ({reason})") from None
    counts = {name: payload.get(name) for name in ("step", "images_seen")}
    if not all(isinstance(value, int) and value >= 0 for value in counts.values()):
        raise UserError(f"{path}: damaged; it says {counts['step']!r} updates on {counts['images_seen']!r} images")
    return generator.eval(), {**config, **counts}


def export_generator(path: Path, out: Path, given: Mapping[str, Any]) -> None:
    """Write the weights of netG_<epoch>.pth to `out`, as NVlabs's test script loads them.

    Args:
        path, given: see `load_generator`.
        out: file to write.

    Raises:
        UserError: the generator has parts that the published code lacks, or see `load_generator`.
    """
    generator, config = load_generator(path, given)
    own = {name: config.get(name) for name in ("class_cond", "domain")}
    lacking = [f"--{name} {value}" for name, value in own.items() if value not in (False, None, "pixel")]
    lacking += [] if generator.cfg.conditional else ["a generator without time embedding"]
    if lacking:
        raise UserError(f"{path}: NVlabs's code has no {' and no '.join(lacking)}")
    save_torch(out, published_state(generator))


def check_config(path: Path, config: Any) -> None:
    """Raise UserError, naming the file and a flag, if a checkpoint's flags are missing or impossible."""
    if not isinstance(config, dict):
        raise UserError(f"{path}: damaged; it holds no flags")
    for name in ARCHITECTURE:
        if not is_value(name, value := config.get(name)):
            raise UserError(f"{path}: damaged, or not of this project: its --{name} is {value!r}")
    try:
        check_architecture(config)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def check_agreement(path: Path, config: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Raise UserError, naming each flag and both values, if given flags contradict a checkpoint."""
    differences = [
        f"--{name} {_text(value)} given, {_text(config[name])} in the checkpoint"
        for name, value in given.items()
        if name in config and config[name] != value
    ]
    if differences:
        raise UserError(f"{path}: {'; '.join(differences)}")


def _text(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def save_content(path: Path, trainer: Trainer, *, step: int, wall_seconds: float, data: Mapping[str, Any]) -> None:
    """Write content.pth, from which the same training command resumes; `data` describes the images."""
    payload = {
        "kind": "content",
        "step": step,
        "wall_seconds": wall_seconds,
        "data": dict(data),
        **trainer.state_dict(),
    }
    save_checkpoint(path, payload, model=MODEL)


def load_content(path: Path, trainer: Trainer, data: Mapping[str, Any]) -> tuple[int, float]:
    """Restore a trainer from content.pth.

    Args:
        path: content.pth.
        trainer: trainer built with the same flags.
        data: description of the present images: by pixels if they are in memory, by file names and sizes if not. Keys
            that both descriptions have must agree.

    Returns:
        Updates and wall seconds so far.

    Raises:
        UserError: the file is damaged or of another model, or the data have changed since.
    """
    payload = load_checkpoint(path, model=MODEL)
    if payload.get("kind") != "content":
        raise UserError(f"{path}: holds a generator, not the state of a training")
    trained_on = payload.get("data")
    if not isinstance(trained_on, dict):
        raise UserError(f"{path}: damaged; it describes no images")
    if any(trained_on[name] != data[name] for name in trained_on.keys() & data.keys()):
        raise UserError(f"--dataset: the images have changed since {path} was written; use --fresh or another --exp")
    try:
        trainer.load_state_dict(payload)
        step, seconds = payload["step"], payload["wall_seconds"]
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path}: does not fit these networks ({reason})") from None
    if not (isinstance(step, int) and step >= 0 and isinstance(seconds, int | float) and seconds >= 0):
        raise UserError(f"{path}: damaged; it says {step!r} updates in {seconds!r} seconds")
    return step, seconds


def seeded_networks(
    config: Mapping[str, Any], size: str, seed: int
) -> tuple[Generator, Discriminator | PlainDiscriminator]:
    """Build both networks with initial weights that depend on `seed` alone; the global random state does not change.

    Args:
        config: flags, and num_classes if there are classes.
        size: kind of the discriminator, "small", "large" or "plain".
        seed: seed of all weights.
    """
    classes = config.get("num_classes", 0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        generator = make_generator(config)
        domain = Domain.of(config)
        sizes = domain.num_channels, config["ngf"], config["t_emb_dim"], classes
        discriminator = PlainDiscriminator(domain.size, *sizes) if size == "plain" else Discriminator(size, *sizes)
    return generator, discriminator
