"""Training of the feature extractor `comparison.scores.classifier`, used by train_classifier.py alone."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from comparison import rng
from comparison.checkpoints import load_checkpoint, newest, prune, save_checkpoint
from comparison.cli import UserError
from comparison.data.batches import BatchStream
from comparison.data.images import CIFAR10_CLASSES, ImageSet, load_images
from comparison.device import autocast_dtype, describe_device, pick_device, precision_name, set_threads
from comparison.files import atomic, write_json
from comparison.progress import bar
from comparison.runs import Run, git_commit, versions
from comparison.scores import classifier
from comparison.training import Clock, StopSignal

INTERRUPTED = 130
WARM_UP = 0.2  # share of the updates in which the learning rate rises


def load_ten_classes(source: str, split: str, flag: str) -> ImageSet:
    """Read images with the ten classes of CIFAR-10 in their order.

    Raises:
        UserError: other classes, or none.
    """
    data = load_images(source, 32, split=split)
    if data.class_names != CIFAR10_CLASSES:
        raise UserError(f"{flag} {source}: must have the ten classes of CIFAR-10 as folders, {CIFAR10_CLASSES[0]} ...")
    return data


def learning_rate(step: int, steps: int, highest: float) -> float:
    """Rise linearly for WARM_UP of the updates, then fall linearly to 0."""
    warm = WARM_UP * steps
    return highest * min((step + 1) / warm, (steps - step) / (steps - warm))


def shifted(x: Tensor, by: int, *key: rng.Key) -> Tensor:
    """Shift each image by up to `by` pixels in both directions, borders mirrored."""
    if not by:
        return x
    count, size = len(x), x.shape[-1]
    x = functional.pad(x, (by, by, by, by), mode="reflect")
    offset = rng.randint(2 * by + 1, (count, 2), *key)
    rows = offset[:, :1] + torch.arange(size)
    columns = offset[:, 1:] + torch.arange(size)
    index = (rows[:, :, None] * x.shape[-1] + columns[:, None, :]).view(count, 1, -1).to(x.device)
    return x.flatten(2).gather(2, index.expand(-1, 3, -1)).view(count, 3, size, size)


def train_and_export(run: Run, options: Mapping[str, Any], out: Path | None) -> int:
    """Train to the end of the epochs, test, write the weight file; return the exit status."""
    set_threads(options["threads"])
    device = pick_device(options["device"])
    dtype = autocast_dtype(options["precision"], device)
    data = load_ten_classes(options["data"], "train", "--data")
    test = load_ten_classes(options["test"] or options["data"], "test", "--test")
    rng.seed_default(options["seed"], "weights")
    network = classifier.Classifier().to(device).to(memory_format=torch.channels_last)
    decayed = [p for p in network.parameters() if p.ndim > 1]
    others = [p for p in network.parameters() if p.ndim <= 1]
    optimizer = torch.optim.SGD(
        [{"params": decayed, "weight_decay": options["weight_decay"]}, {"params": others}],
        lr=options["lr"],
        momentum=0.9,
        nesterov=True,
    )
    stream = BatchStream(data, options["batch_size"], options["seed"], device=device)
    if not run.finished_reason():
        parameters = sum(p.numel() for p in network.parameters())
        facts = {"parameters": parameters, "device": describe_device(device), "precision": precision_name(dtype)}
        if not _fit(run, network, optimizer, stream, data, options, dtype, facts):
            return INTERRUPTED
    else:
        _restore(run, network, optimizer)
    return _export(run, network, test, data, out)


def _restore(run: Run, network: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[int, float]:
    path = newest(run.folder, "classifier_*.pt")
    if path is None:
        return 0, 0.0
    there = load_checkpoint(path, model="classifier")
    network.load_state_dict(there["network"])
    optimizer.load_state_dict(there["optimizer"])
    return there["step"], there["wall_seconds"]


def _fit(
    run: Run,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    stream: BatchStream,
    data: ImageSet,
    options: Mapping[str, Any],
    dtype: torch.dtype | None,
    facts: dict[str, Any],
) -> bool:
    """Train; return whether the end was reached."""
    step, seconds = _restore(run, network, optimizer) if run.resumed else (0, 0.0)
    run.start(step)
    run.describe(data=data.describe(), **facts)
    steps = options["epochs"] * stream.steps_per_epoch
    clock, losses = Clock(seconds), []
    device = next(network.parameters()).device
    network.train()

    def save() -> None:
        state = {"network": network.state_dict(), "optimizer": optimizer.state_dict()}
        path = run.folder / f"classifier_{step:06d}.pt"
        save_checkpoint(path, {**state, "step": step, "wall_seconds": clock.seconds()}, model="classifier")
        prune(run.folder, "classifier_*.pt", 1)

    with StopSignal() as stop, bar(steps, step, "train", "steps") as progress:
        while step < steps and not stop.requested:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, steps, options["lr"])
            x, labels = stream.batch(step)
            x = shifted(x, options["shift"], options["seed"], step, "shift").contiguous(
                memory_format=torch.channels_last
            )
            with torch.autocast(device.type, dtype, enabled=dtype is not None):
                logits = network(x).float()
            loss = functional.cross_entropy(logits, labels, label_smoothing=options["label_smoothing"])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            if not np.isfinite(losses[-1]):
                raise UserError(f"the loss is {losses[-1]} at step {step}: lower --lr")
            step += 1
            progress.update()
            if step % stream.steps_per_epoch == 0:
                mean = sum(losses) / len(losses)
                images = step * options["batch_size"]
                run.log_row(step, images, clock.seconds(), loss=mean)
                run.log(f"epoch {step // stream.steps_per_epoch}: loss {mean:.4f}, {clock.seconds():.0f} s")
                losses = []
                save()
        if step < steps:
            save()
            run.log(f"interrupted after step {step}; the same command continues")
            return False
    run.finish(
        f"epochs {options['epochs']}",
        steps=step,
        images_seen=step * options["batch_size"],
        wall_seconds=clock.seconds(),
    )
    return True


def _export(run: Run, network: classifier.Classifier, test: ImageSet, data: ImageSet, out: Path | None) -> int:
    """Write the weights and what they are; the accuracy is that of the exported, rounded weights."""
    arrays = classifier.fold(network.eval().cpu())
    extractor = classifier.Extractor({name: torch.from_numpy(array).float() for name, array in arrays.items()})
    hits = 0
    for part, labels in zip(test.images.split(250), test.labels.split(250), strict=True):  # type: ignore[union-attr]
        hits += int((extractor(part)[1].argmax(1) == labels).sum())
    accuracy = hits / len(test)
    facts = {
        "accuracy": accuracy,
        "test": test.describe(),
        "data": data.describe(),
        "parameters": sum(array.size for array in arrays.values()),
        "fingerprint": classifier.fingerprint_of(arrays),
        "training": {**run.config["options"], **run.config["finished"]},
        "git_commit": git_commit(),
        "versions": versions(),
    }
    weights = classifier.WEIGHTS if out is None else out / classifier.WEIGHTS.name
    weights.parent.mkdir(parents=True, exist_ok=True)
    with atomic(weights) as temporary, open(temporary, "wb") as file:
        np.savez(file, allow_pickle=False, **arrays)
    write_json(weights.with_name(classifier.FACTS.name), facts)
    run.log(f"test accuracy {100 * accuracy:.2f}% of {len(test):,} images; weights in {weights.name}")
    return 0
