"""Search for training flags with Optuna: the study on disk, the trials, and the confirmation of the winner.

Optuna (Akiba et al. 2019, https://arxiv.org/abs/1907.10902) proposes, prunes and stores the trials in SQLite. A trial
whose worker was killed has no heartbeat; after GRACE_SECONDS it is queued again and its training resumes. `args` are
those of tune_ddgan.py after its `validate`.
"""

import contextlib
import functools
import math
import warnings
from argparse import Namespace
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import optuna
import test_ddgan
import train_ddgan
from comparison.cli import UserError
from comparison.data.images import load_npz
from comparison.device import pick_device, set_threads
from comparison.runs import read_config
from comparison.scores.features import embed
from comparison.scores.metrics import frechet_estimate, frechet_from, moments
from comparison.scores.reference import Reference
from filelock import FileLock
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.trial import TrialState
from sqlalchemy import event
from sqlalchemy.exc import DatabaseError

SEARCH, CONFIRMATION = "ddgan", "confirmation"  # names of the two studies in study.db
DONE = (TrialState.COMPLETE, TrialState.PRUNED)  # an interrupted trial is FAIL, and its copy is WAITING
STARTUP_TRIALS, PRUNING_FROM = 10, 5  # random trials at first; finished trials before any is pruned
HEARTBEAT_SECONDS, GRACE_SECONDS = 10, 60
Values = Mapping[str, float]  # flag of train_ddgan.py -> value
Entry = dict[str, Any]  # value, interval and n of a distance

optuna.logging.set_verbosity(optuna.logging.ERROR)
warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)


def open_study(folder: Path, name: str = SEARCH) -> optuna.Study:
    """Open or create a study in study.db of `folder`.

    Raises:
        UserError: the file is damaged.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = (folder / "study.db").resolve()
    try:
        with FileLock(f"{path}.lock"):  # Optuna creates the tables in steps, which two workers must not mix
            storage = RDBStorage(
                f"sqlite:///{path}",
                # Wait up to 120 s while another worker writes; the driver begins no transaction, see below.
                engine_kwargs={"connect_args": {"timeout": 120, "isolation_level": None}},
                heartbeat_interval=HEARTBEAT_SECONDS,
                grace_period=GRACE_SECONDS,
                heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(),
            )
            # A write lock from the start: otherwise two workers could both take the same waiting trial.
            event.listen(storage.engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
            pruner = optuna.pruners.MedianPruner(n_startup_trials=PRUNING_FROM)
            return optuna.create_study(storage=storage, study_name=name, load_if_exists=True, pruner=pruner)
    except (DatabaseError, RuntimeError, optuna.exceptions.StorageInternalError) as error:
        if isinstance(error, RuntimeError) and "version" not in str(error):
            raise
        reason = str(error).splitlines()[0]
        raise UserError(f"{folder / 'study.db'}: not readable as a study ({reason})") from None


def begin(args: Namespace) -> None:
    """Store the settings of a new study, and queue the base flags as its first trial.

    Raises:
        UserError: the folder holds a study with other settings.
    """
    study, names = open_study(args.folder), ("rungs", "num_samples", "features", "seed")
    space = {name: list(bounds) for name, bounds in args.space.items()}
    settings = {"base": " ".join(args.base), "space": space, **{name: getattr(args, name) for name in names}}
    saved = study.user_attrs.get("settings")
    if saved is None:
        parameters = dict(parameter(name, value) for name, value in args.default.items())
        study.enqueue_trial(parameters, {"default": True, "values": args.default}, skip_if_exists=True)
        study.set_user_attr("settings", settings)
        return
    # Sorted, as the order of flags does not matter.
    other = [n for n, value in settings.items() if sorted(str(value).split()) != sorted(str(saved.get(n)).split())]
    if other:
        differences = "; ".join(f"{n} {saved.get(n)} in the study, {settings[n]} on the command line" for n in other)
        raise UserError(f"{args.folder} holds another study: {differences}; use the same options or another --study")


def parameter(name: str, value: float) -> tuple[str, float]:
    """Return a flag as a parameter of the study; ema_decay becomes its distance from 1."""
    return ("1-ema_decay", float(f"{1 - value:.6g}")) if name == "ema_decay" else (name, value)


def suggest(trial: optuna.Trial, space: Mapping[str, tuple[float, float]]) -> dict[str, float]:
    """Return flag -> value from the sampler, with three digits (ema_decay's distance from 1 with two)."""
    values: dict[str, float] = {}
    for name, (low, high) in space.items():
        if isinstance(low, int):
            values[name] = trial.suggest_int(name, low, int(high), log=True)
        elif name == "ema_decay":
            (key, longest), (_, shortest) = parameter(name, low), parameter(name, high)
            values[name] = round(1 - float(f"{trial.suggest_float(key, shortest, longest, log=True):.2g}"), 8)
        else:
            values[name] = float(f"{trial.suggest_float(name, low, high, log=True):.3g}")
    return values


def flag_arguments(values: Values) -> list[str]:
    """Return the command line arguments of these values."""
    return [part for name, value in values.items() for part in (f"--{name}", f"{value:.10g}")]


@functools.cache
def load_scorer(
    source: str, image_size: int, num_images: int, features: str, device: str, threads: int
) -> tuple[Callable[[Path], Entry], dict[str, Any]]:
    """Embed the training images; return a function that scores an .npz file against them, and its metadata.

    `source` and `features` are --reference and --features of evaluate.py. The metadata has `n`, the number of images
    per score, and `floor`, the score of as many other training images.
    """
    set_threads(threads)
    reference = Reference.load(source, image_size, num_images, 0, features, device=pick_device(device))
    distance, metadata = frechet_from(*moments(reference.training[reference.chosen])), reference.describe()

    def score(path: Path) -> Entry:
        embedded = embed(load_npz(path)[0][: metadata["n"]], reference.extractor, desc="score")
        return frechet_estimate(distance, reference.scale(embedded)).as_json()

    floor = frechet_estimate(distance, reference.training[reference.others[: metadata["n"]]]).as_json()
    return score, {**{name: metadata[name] for name in ("reference", "extractor", "n", "image_size")}, "floor": floor}


def objective(args: Namespace, trial: optuna.Trial) -> float:
    """Train a trial up to each of args.rungs, numbers of images, and return its last distance.

    Values, run folder and scores are attributes of the trial, so that it can resume.

    Raises:
        TrialPruned: the trial is worse than the median, has diverged, or needs too much memory.
        KeyboardInterrupt, UserError: the search must end; the trial is queued again.
    """
    attrs, suggested, pruned = trial.user_attrs, suggest(trial, args.space), False
    values, name = attrs.get("values", suggested), attrs.get("folder", f"{trial.number:04d}")
    if not values:
        raise optuna.TrialPruned  # another worker took the last training of the confirmation
    trial.set_user_attr("values", values)
    trial.set_user_attr("folder", name)
    folder, scores = args.folder / "trials" / name, dict(attrs.get("scores", {}))
    try:
        for images in args.rungs:
            if str(images) not in scores:
                scores[str(images)] = measure(args, folder, values, attrs.get("seed", args.seed), images)
                trial.set_user_attr("scores", scores)
            value = scores[str(images)]["value"]
            trial.report(value, images)
            pruned = images < args.rungs[-1] and "default" not in attrs and trial.should_prune()
            if pruned:
                break
        ending = f"{value:.4g} at {images} images{', pruned' if pruned else ''}"
    except (Exception, KeyboardInterrupt) as error:
        pruned, diverged = True, "training has diverged" in str(error)
        if not diverged and not isinstance(error, RuntimeError):  # torch raises it if memory is short
            RetryHeartbeatStaleTrialCallback()(trial.study, trial.study.trials[trial.number])
            raise
        ending = str(error).split("\n")[0]
        trial.set_user_attr("diverged", diverged)
    for path in (*folder.glob("*.pth"), *folder.glob("*.npz")):
        path.unlink()
    print(f"trial {name} ({' '.join(flag_arguments(values))}): {ending}", flush=True)
    if pruned:
        raise optuna.TrialPruned
    return value


def measure(args: Namespace, folder: Path, values: Values, seed: int, images: int) -> Entry:
    """Train or resume a run up to a number of images, and score its samples.

    Raises:
        KeyboardInterrupt: the training was interrupted, and has saved its state.
        UserError: the training diverged, failed, or its own flags ended it earlier.
    """
    score, metadata = load_scorer(*args.scoring)
    folder.mkdir(parents=True, exist_ok=True)
    shared = ["--exp", f"{folder}/", "--device", args.device, "--precision", args.precision]
    shared += ["--threads", str(args.threads)]
    train = [*args.base, *flag_arguments(values), "--seed", str(seed), "--keep", "1", *shared]
    train += ["--max_images", str(args.max_images), "--stop_after", str(images)]
    train += [] if any(folder.glob("*.pth")) else ["--fresh"]  # there is nothing to resume
    sample = ["--num_samples", str(metadata["n"]), "--batch_size", str(min(metadata["n"], 100)), *shared]
    with open(folder / "console.txt", "a", encoding="utf-8") as console, contextlib.redirect_stdout(console):
        status = train_ddgan.main(train_ddgan.parse_args(train))
        if status == 130:
            raise KeyboardInterrupt
        done = read_config(folder / "config.json").get("finished") or {"images_seen": 0, "reason": "an error"}
        if status or done["images_seen"] < images:
            raise UserError(
                f"{folder}: {done['reason']} ended the training at {done['images_seen']} of {images} images; see "
                "console.txt, or pass --num_epoch 0 or a smaller --max_images"
            )
        if test_ddgan.main(test_ddgan.parse_args(sample)):
            raise UserError(f"{folder}: sampling failed; see console.txt")
    entry = score(folder / "samples.npz")
    if not math.isfinite(entry["value"]):
        raise UserError("the training has diverged: the distance of its samples is not finite")
    return {**entry, "images_seen": done["images_seen"], "seconds": done["wall_seconds"]}


def search(args: Namespace, worker: int) -> None:
    """Run trials until all workers together have finished --trials; trials that are running then finish too."""
    study = open_study(args.folder)
    begun = len(study.get_trials(deepcopy=False))
    seed = args.seed * 100_003 + begun * 1009 + worker  # differs between workers and restarts
    study.sampler = optuna.samplers.TPESampler(
        n_startup_trials=STARTUP_TRIALS, multivariate=True, constant_liar=True, seed=seed % 2**32
    )
    if len(study.get_trials(deepcopy=False, states=DONE)) < args.trials:
        callback = optuna.study.MaxTrialsCallback(args.trials, states=DONE)
        study.optimize(functools.partial(objective, args), callbacks=[callback])


def queue_confirmation(args: Namespace) -> set[str]:
    """Queue trainings of the winner and the base flags with other seeds, unless they are queued or done.

    Returns:
        Names of their run folders; empty if no trial is better than the base flags.
    """
    done = open_study(args.folder).get_trials(deepcopy=False, states=[TrialState.COMPLETE])
    best = min(done, key=lambda trial: (trial.value, trial.number), default=None)
    if best is None or best.user_attrs.get("default"):
        return set()
    study, names = open_study(args.folder, CONFIRMATION), set()
    roles = {"default": ("default", args.default), "winner": (best.user_attrs["folder"], best.user_attrs["values"])}
    for seed in range(args.seed + 1, args.seed + 1 + args.confirm):
        for role, (folder, values) in roles.items():
            names.add(name := f"{folder}-seed{seed}")
            attrs = {"role": role, "seed": seed, "values": values, "folder": name}
            study.enqueue_trial({"run": name}, attrs, skip_if_exists=True)
    return names


def confirm(args: Namespace, worker: int) -> None:
    """Run the queued trainings together with the other workers."""
    study = open_study(args.folder, CONFIRMATION)
    optuna.storages.fail_stale_trials(study)
    last_rung = Namespace(**{**vars(args), "space": {}, "rungs": args.rungs[-1:]})
    while study.get_trials(deepcopy=False, states=[TrialState.WAITING]):
        study.optimize(functools.partial(objective, last_rung), n_trials=1)


def record(args: Namespace, confirmed: Collection[str]) -> dict[str, Any]:
    """Return the content of study.json; `confirmed` is a result of `queue_confirmation`."""
    rows: list[Entry] = []
    for trial in open_study(args.folder).get_trials(deepcopy=False, states=DONE):
        attrs = trial.user_attrs
        state = {None: "pruned", True: "diverged", False: "failed"}[attrs.get("diverged")]
        row = {"number": len(rows), "state": "finished" if trial.state is TrialState.COMPLETE else state}
        row |= {"default": "default" in attrs, "values": attrs["values"]}
        scores = attrs.get("scores", {})
        rows.append({**row, "scores": [{"images": int(images), **entry} for images, entry in scores.items()]})
    others: list[Entry] = []
    for trial in open_study(args.folder, CONFIRMATION).get_trials(deepcopy=False, states=DONE):
        attrs = trial.user_attrs
        if attrs.get("folder") in confirmed:
            entry = attrs.get("scores", {}).get(str(args.rungs[-1]), {"value": None})
            others.append({"role": attrs["role"], "seed": attrs["seed"], **entry})
    scoring, default = dict(load_scorer(*args.scoring)[1]), args.default
    config = read_config(min((args.folder / "trials").glob("*/config.json")))
    names = ("max_images", "num_samples", "seed", "confirm", "dataset", "base", "rungs")
    space = [{"name": n, "low": low, "high": high, "default": default[n]} for n, (low, high) in args.space.items()]
    return {
        "schema": 1,
        "study": "ddgan-tuning",
        "options": {**{name: getattr(args, name) for name in names}, "fixed": sorted(args.fix)},
        "space": space,
        "floor": scoring.pop("floor"),
        "scoring": scoring,
        "training": {name: config.get(name) for name in ("device", "precision", "versions", "git_commit")},
        "trials": rows,
        "confirm": sorted(others, key=lambda row: (row["seed"], row["role"])),
    }
