"""Training of the feature extractor `comparison.scores.classifier`, for train_classifier.py."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from comparison import rng
from comparison.checkpoints import load_checkpoint, newest, save_checkpoint
from comparison.cli import UserError
from comparison.data.batches import BatchStream
from comparison.data.images import CIFAR10_CLASSES, ImageSet, load_images
from comparison.device import autocast_dtype, describe_device, pick_device, precision_name, set_threads
from comparison.files import atomic, write_json
from comparison.runs import Run, git_commit, versions
from comparison.scores import classifier
from comparison.training import Budget, Loop, prune

WARM_UP = 0.2  # fraction of the updates in which the learning rate rises


def load_ten_classes(source: str, split: str, flag: str) -> ImageSet:
    """Load images of CIFAR-10's ten classes; raise UserError, with the name of `flag`, for other classes."""
    data = load_images(source, 32, split=split)
    if data.class_names != CIFAR10_CLASSES:
        raise UserError(f"{flag} {source}: must have the ten classes of CIFAR-10 as folders, {CIFAR10_CLASSES[0]} ...")
    return data


def learning_rate(step: int, steps: int, highest: float) -> float:
    """Return the learning rate, which rises linearly for WARM_UP of the updates, then falls linearly to 0."""
    warm = WARM_UP * steps
    return highest * min((step + 1) / warm, (steps - step) / (steps - warm))


def shifted(x: Tensor, by: int, *key: rng.Key) -> Tensor:
    """Shift each image by up to `by` pixels in both directions, with reflected borders."""
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
    """Train to the end of the epochs, test, and write the weight file; return the exit status."""
    set_threads(options["threads"])
    device = pick_device(options["device"])
    dtype = autocast_dtype(options["precision"], device)
    data = load_ten_classes(options["data"], "train", "--data")
    test = load_ten_classes(options["test"] or options["data"], "test", "--test")
    rng.seed_default(options["seed"], "weights")
    network = classifier.Classifier().to(device).to(memory_format=torch.channels_last)
    decayed = [p for p in network.parameters() if p.ndim > 1]
    others = [p for p in network.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": options["weight_decay"]}, {"params": others}]
    optimizer = torch.optim.SGD(groups, lr=options["lr"], momentum=0.9, nesterov=True)
    stream = BatchStream(data, options["batch_size"], options["seed"], device=device)
    if run.finished_reason():
        _restore(run, network, optimizer)
    elif status := _fit(run, network, optimizer, stream, data, options, dtype):
        return status
    return _export(run, network, test, data, out)


def _restore(run: Run, network: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[int, float]:
    path = newest(run.folder, "classifier_*.pt")
    if path is None:
        return 0, 0.0
    saved = load_checkpoint(path, model="classifier")
    network.load_state_dict(saved["network"])
    optimizer.load_state_dict(saved["optimizer"])
    return saved["step"], saved["wall_seconds"]


def _fit(
    run: Run,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    stream: BatchStream,
    data: ImageSet,
    options: Mapping[str, Any],
    dtype: torch.dtype | None,
) -> int:
    """Train to the end of the epochs and return the exit status."""
    step, seconds = _restore(run, network, optimizer) if run.resumed else (0, 0.0)
    size, epoch, epochs = options["batch_size"], stream.steps_per_epoch, options["epochs"]
    bound = (epochs * epoch, f"epochs {epochs}")
    loop = Loop(
        run, Budget(), lambda updates: updates * size, step=step, seconds=seconds, log_interval=epoch, epochs=bound,
        advice="lower --lr",
    )  # fmt: skip
    device, losses = next(network.parameters()).device, list[float]()
    facts = {"parameters": sum(p.numel() for p in network.parameters()), "device": describe_device(device)}
    loop.begin(f"{len(data)} images, {epochs} epochs", data=data.describe(), precision=precision_name(dtype), **facts)
    network.train()
    for step in loop:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, epochs * epoch, options["lr"])
        x, labels = stream.batch(step)
        assert labels is not None
        x = shifted(x, options["shift"], options["seed"], step, "shift").contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            logits = network(x).float()
        loss = functional.cross_entropy(logits, labels, label_smoothing=options["label_smoothing"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        loop.check({"loss": losses[-1]})
        if loop.row_due:
            mean = sum(losses) / len(losses)
            loop.row({"loss": mean})
            loop.log(f"epoch {loop.step // epoch}: loss {mean:.4f}, {loop.seconds:.0f} s")
            losses = []
            _save(loop, network, optimizer)
    if not loop.reason:
        _save(loop, network, optimizer)
    return loop.finish()


def _save(loop: Loop, network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    assert loop.run
    state = {"network": network.state_dict(), "optimizer": optimizer.state_dict()}
    path = loop.run.folder / f"classifier_{loop.step:06d}.pt"
    save_checkpoint(path, {**state, "step": loop.step, "wall_seconds": loop.seconds}, model="classifier")
    prune(loop.run.folder, "classifier_*.pt", 1)


def _export(run: Run, network: classifier.Classifier, test: ImageSet, data: ImageSet, out: Path | None) -> int:
    """Write the rounded weights, and the facts on them with their test accuracy."""
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
