"""Options that name a trained network, the flags of its run, and copies of remote files; without torch."""

import argparse
import os
import re
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from comparison import weights
from comparison.checkpoints import trained_facts
from comparison.cli import UserError, check_folder, data_root, local_path, str2bool
from comparison.files import atomic
from comparison.runs import read_config
from filelock import FileLock
from improved_diffusion.blob import backend, is_remote
from improved_diffusion.flags import add_dict_to_argparser, check_flags, unify_prediction

MODEL, SR_MODEL = "improved-diffusion", "improved-diffusion-sr"
# Flags that may differ from those of training: how many steps are taken, and what only training uses.
SAMPLING_FLAGS = frozenset({"timestep_respacing", "use_checkpoint", "loss_weighting", "snr_gamma"})
CONNECTIONS = 16


def add_network_flags(parser: argparse.ArgumentParser, defaults: dict[str, Any]) -> None:
    """Add the flags of the network and the process; they appear in the result only where given."""
    group = parser.add_argument_group("model and process, by default those of the run")
    add_dict_to_argparser(group, defaults)
    for action in group._group_actions:
        action.default = argparse.SUPPRESS


def add_model_path(parser: argparse.ArgumentParser, title: str, help_text: str) -> Callable[..., argparse.Action]:
    """Add --model_path in a group of flags; return the group's `add_argument`."""
    add = parser.add_argument_group(title).add_argument
    add("--model_path", "--checkpoint", type=path_or_url, required=True, help=help_text)
    return add


def add_checkpoint_flags(parser: argparse.ArgumentParser) -> None:
    """Add --model_path, --out_dir, --compile, --cuda_graph and --use_fp16."""
    add = add_model_path(
        parser, "checkpoint", "model<step>.pt or ema_<rate>_<step>.pt, local or remote, or pretrained:RUN"
    )
    add("--out_dir", "--out", type=local_path, help="output folder; default: OPENAI_LOGDIR, else the model's folder")
    add(
        "--compile",
        type=str2bool,
        default=False,
        help="compile the network by torch.compile: takes a minute, then speeds up GPUs",
    )
    add(
        "--cuda_graph",
        type=str2bool,
        default=True,
        help="on a CUDA GPU: capture the network's evaluation of small batches as CUDA graphs",
    )
    add("--use_fp16", type=str2bool, help="compute in bf16 where the device can, else fp16 on CUDA, else float32")


def path_or_url(text: str) -> Path | str:
    """Parse a flag: a local path, pretrained:RUN for weights.safetensors of a run, or the text of a remote path."""
    return text if is_remote(text) else weights.checkpoint_path(MODEL)(text)


def folder_of_environment() -> Path | None:
    """Return the folder of OPENAI_LOGDIR, None where it is not set.

    Raises:
        UserError: it is remote.
    """
    text = os.environ.get("OPENAI_LOGDIR") or ""
    if is_remote(text):
        raise UserError(f"OPENAI_LOGDIR must be a local folder, not {text}")
    return Path(text) if text else None


def out_folder(args: argparse.Namespace) -> Path:
    """Return the output folder of a script with `add_checkpoint_flags`.

    Raises:
        UserError: it cannot be written.
    """
    variable = None if args.out_dir else folder_of_environment()
    folder = args.out_dir or variable or weights.out_folder(args.model_path)
    check_folder(folder, "OPENAI_LOGDIR" if variable else "--out_dir")
    return folder


def network_flags(args: argparse.Namespace, defaults: dict[str, Any], model: str) -> dict[str, Any]:
    """Merge the given flags with those of the run that wrote the model file; a remote file is copied first.

    Args:
        args: command line with `add_network_flags` and `add_checkpoint_flags`; `model_path` becomes local.
        defaults: flags with their defaults.
        model: family of the run.

    Raises:
        UserError: there is no file, the flags disagree, the run is of another family, or nothing can be written.
    """
    find_model(args)
    out_folder(args)
    return flags_of_run(args, defaults, model)


def find_model(args: argparse.Namespace) -> None:
    """Make `model_path` local; UserError where there is no such file."""
    args.model_path = download_model("--model_path", args.model_path)
    if not args.model_path.is_file():
        raise UserError(f"--model_path {args.model_path}: no such file")


def flags_of_run(args: argparse.Namespace, defaults: dict[str, Any], model: str) -> dict[str, Any]:
    """Merge the given flags with those of the run that wrote a local model file; see `network_flags`."""
    given = {name: value for name, value in vars(args).items() if name in defaults}
    unify_prediction(given)
    flags, path = {**defaults, **given}, args.model_path.parent / "config.json"
    if path.is_file():
        config = read_config(path)
        if config.get("model") != model:
            raise UserError(f"--model_path {args.model_path}: of a run of {config.get('model')}, not of {model}")
        trained = {name: value for name, value in config["options"].items() if name in defaults}
        check_kinds(path, trained, defaults)
        unify_prediction(trained)
        for name, value in given.items():
            if name not in SAMPLING_FLAGS and trained.get(name, defaults[name]) != value:
                raise UserError(f"--{name} {value}: the model was trained with {trained.get(name, defaults[name])}")
        flags = {**defaults, **trained, **given}
    validate_flags(flags, args)
    return flags


def training_of(path: Path) -> dict[str, Any]:
    """Return the step, images_seen and wall_seconds of a network's file, from its name and its run; None if unknown."""
    if weights.is_weights(path):
        facts = weights.read_facts(path)
        return {name: facts.get(name) for name in ("step", "images_seen", "wall_seconds")}
    match = re.fullmatch(r"(?:model|ema_[\d.]+_)(\d+)\.pt", path.name)
    return trained_facts(path.parent, int(match[1]) if match else None)


def options_of_run(path: Path) -> dict[str, Any] | None:
    """Return the options of the run that wrote a model file, None for a file without config.json."""
    config = path.with_name("config.json")
    return read_config(config)["options"] if config.is_file() else None


def check_kinds(path: Path, options: dict[str, Any], defaults: dict[str, Any]) -> None:
    """Raise UserError for an option of a run that is of another type than its default."""
    for name, value in options.items():
        kind = type(defaults[name])
        fits = type(value) in ((int, float) if kind is float else (kind,))
        if not fits:
            raise UserError(f"{path}: options.{name}: {value!r} is not of the type {kind.__name__}")


def validate_flags(flags: dict[str, Any], args: argparse.Namespace) -> None:
    """Raise UserError, naming the flag, for values that no network or process can have."""
    try:
        check_flags(flags)
    except ValueError as error:
        raise UserError(f"--{error}") from None
    if args.use_fp16 and args.precision == "float32":
        raise UserError("--use_fp16 True and --precision float32 contradict each other")


def log_formats() -> list[str]:
    """Return the names in OPENAI_LOG_FORMAT."""
    return [name for text in os.environ.get("OPENAI_LOG_FORMAT", "").split(",") if (name := text.strip())]


def download_data(flag: str, source: str) -> str:
    """Return a data source, copied once to <data root>/cache if it is a remote folder, .npz or .zip file.

    Raises:
        UserError: names `flag`; there is nothing at the path, or it cannot be read.
    """
    if not is_remote(source):
        return source
    if source.endswith((".npz", ".zip")):
        folder = _download(flag, os.path.dirname(source), [os.path.basename(source)], [])
        return str(folder / os.path.basename(source))
    return str(_download(flag, source.rstrip("/"), None, []))


def download_model(flag: str, path: "Path | str | None", ema_rates: Iterable[str] = ()) -> Any:
    """Return the local path of a model file; a remote one is copied when it has changed, with its run's records.

    Args:
        flag: named in errors.
        path: local or remote; None stays None.
        ema_rates: rates of the EMA weights that are copied too, with the optimizer, to resume from them.

    Raises:
        UserError: there is no such file, or it cannot be read.
    """
    if not isinstance(path, str):
        return path
    folder, name = os.path.split(path)
    step = name.removeprefix("model")
    beside = [f"ema_{rate.strip()}_{step}" for rate in ema_rates] + ([f"opt{step}"] if ema_rates else [])
    return _download(flag, folder, [name], ["config.json", "progress.csv", *beside]) / name


def _download(flag: str, remote: str, names: list[str] | None, optional: list[str]) -> Path:
    """Copy files of a remote folder that have changed since the last copy. Ranks wait for each other.

    Args:
        flag: named in errors.
        remote: the folder.
        names: files that must exist; None for all files of a data set, which are copied once.
        optional: files that may be missing.
    """
    shown = remote if names is None else f"{remote}/{names[0]}"
    scheme, _, rest = remote.partition("://")
    if not rest or ".." in rest.split("/"):
        raise UserError(f"{flag} {shown}: not a remote path")
    folder = data_root() / "cache" / scheme / rest
    folder.mkdir(parents=True, exist_ok=True)

    def fetch(name: str) -> None:
        target, source = folder / name, f"{remote}/{name}"
        if target.is_file() and names is None:
            return
        found = files.stat(source)
        if target.is_file() and (target.stat().st_size, int(target.stat().st_mtime)) == (found.size, int(found.mtime)):
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic(target) as temporary:
            files.copy(source, str(temporary), overwrite=True)
            os.utime(temporary, (found.mtime, found.mtime))

    try:
        files = backend(remote)
        with FileLock(folder / ".lock"), ThreadPoolExecutor(CONNECTIONS) as pool:
            if names is None:
                below = (f"{root}/{name}" for root, _, found in files.walk(remote) for name in found)
                if not (paths := [os.path.relpath(path, remote) for path in below]):
                    raise FileNotFoundError("no files in this folder")
            list(pool.map(fetch, paths if names is None else names))
            for name in optional:
                try:
                    fetch(name)
                except FileNotFoundError:
                    (folder / name).unlink(missing_ok=True)
    except Exception as error:  # blobfile's own errors, and those of the network libraries below it
        raise UserError(f"{flag} {shown}: {' '.join(str(error).split()) or type(error).__name__}") from None
    return folder
