"""A search for training flags: the space, and the study on disk that several workers share.

Optuna (Akiba et al. 2019, https://arxiv.org/abs/1907.10902) proposes and prunes; it is imported only inside functions.
Workers are processes of one machine or of one file system: each holds a lock on a file as long as it lives, so that a
worker that was killed is noticed at once, and what it had begun is taken over.
"""

import fcntl
import json
import time
import uuid
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from comparison.cli import UserError

if TYPE_CHECKING:
    from optuna.pruners import BasePruner
    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial, Trial

STARTUP_TRIALS = 10  # drawn at random before the sampler models anything
PRUNING_FROM = 5  # finished trials, before which none is pruned
Values = dict[str, float | int]


@dataclass(frozen=True)
class Knob:
    """One flag of train_ddgan.py that the search varies, on a logarithmic scale.

    Attributes:
        name: of the flag.
        low, high: bounds, both included.
        kind: "float", "int", or "decay": a share near 1, whose distance from 1 is on the logarithmic scale.
    """

    name: str
    low: float
    high: float
    kind: str = "float"

    @property
    def parameter(self) -> str:
        """The name in the study."""
        return f"1-{self.name}" if self.kind == "decay" else self.name

    def to_parameter(self, value: float) -> float:
        """Map the flag's value to the study's."""
        return float(f"{1 - value:.6g}") if self.kind == "decay" else value

    def suggest(self, trial: "Trial") -> float | int:
        """Let the sampler choose; the flag's value, rounded to three digits (a decay's distance from 1 to two)."""
        if self.kind == "int":
            return trial.suggest_int(self.parameter, int(self.low), int(self.high), log=True)
        if self.kind == "decay":
            low, high = (self.to_parameter(value) for value in (self.high, self.low))
            return round(1 - float(f"{trial.suggest_float(self.parameter, low, high, log=True):.2g}"), 8)
        return float(f"{trial.suggest_float(self.parameter, self.low, self.high, log=True):.3g}")


SPACE = (
    Knob("lr_g", 5e-5, 2e-3),
    Knob("lr_d", 5e-5, 2e-3),
    Knob("r1_gamma", 0.005, 2),
    Knob("lazy_reg", 1, 20, "int"),
    Knob("ema_decay", 0.9, 0.9999, "decay"),
    Knob("num_timesteps", 2, 8, "int"),  # 1 is a GAN on images and denoises nothing
    Knob("accum_iter", 1, 4, "int"),
)


def make_space(base: Mapping[str, Any], fixed: Sequence[str], ranges: Mapping[str, tuple[float, float]]) -> list[Knob]:
    """Return the knobs that are searched; each range is widened to hold the value of the base flags.

    Args:
        base: all flags of the training with their values.
        fixed: names that are not searched.
        ranges: bounds instead of those of SPACE.

    Raises:
        UserError: nothing is left, or the value of a base flag cannot be on a logarithmic scale.
    """
    left_out = {*fixed, *(() if base["use_ema"] else ("ema_decay",))}
    space = []
    for knob in SPACE:
        if knob.name in left_out:
            continue
        low, high = ranges.get(knob.name, (knob.low, knob.high))
        value = base[knob.name]
        if not (0 <= value < 1 if knob.kind == "decay" else value > 0):
            raise UserError(f"--{knob.name} {value:g}: cannot be searched around; add --fix {knob.name}={value:g}")
        space.append(replace(knob, low=min(low, value), high=max(high, value)))
    if not space:
        raise UserError("--fix: leaves nothing to search")
    return space


def require_optuna() -> None:
    """Import Optuna and make it quiet.

    Raises:
        UserError: it is not installed.
    """
    try:
        import optuna
    except ModuleNotFoundError:
        raise UserError("the search needs the package optuna, version 4 or 5: pip install optuna") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)


def make_sampler(seed: int, trials: int) -> "BaseSampler":
    """Return the sampler of the next trial; another seed for each, as workers must not draw alike."""
    import optuna

    return optuna.samplers.TPESampler(
        n_startup_trials=STARTUP_TRIALS, multivariate=True, constant_liar=True, seed=(seed * 100_003 + trials) % 2**32
    )


def make_pruner() -> "BasePruner":
    """Return what ends a trial that is worse than the median of the earlier ones at the same number of images."""
    import optuna

    return optuna.pruners.MedianPruner(n_startup_trials=PRUNING_FROM)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of a file; waits for it."""
    with open(path, "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def try_lock(path: Path) -> IO[str] | None:
    """Return an open file that holds the lock of `path` until it is closed, or None where another process has it."""
    file = open(path, "a")  # noqa: SIM115
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


class Search:
    """The study of a folder, as one worker sees it.

    Args:
        folder: of the study; study.db and locks/ appear in it.
        settings: what all workers must agree on, plain types.
        space: what is searched.
        default: values of the base flags, tried first.
        seed: of the sampler.

    Raises:
        UserError: the folder holds a study with other settings, or a damaged one.
    """

    def __init__(
        self, folder: Path, settings: Mapping[str, Any], space: Sequence[Knob], default: Mapping[str, float], seed: int
    ):
        import optuna
        from sqlalchemy.exc import DatabaseError

        self.folder, self.space, self.default, self.seed = folder, list(space), dict(default), seed
        self.locks = folder / "locks"
        self.locks.mkdir(parents=True, exist_ok=True)
        self.worker = uuid.uuid4().hex[:12]
        self._alive = try_lock(self.locks / self.worker)
        with self._locked():
            url = f"sqlite:///{(folder / 'study.db').resolve()}"
            try:
                storage = optuna.storages.RDBStorage(url, engine_kwargs={"connect_args": {"timeout": 120}})
                self.study = optuna.create_study(
                    storage=storage, study_name="ddgan", load_if_exists=True, pruner=make_pruner(), direction="minimize"
                )
            except (DatabaseError, optuna.exceptions.StorageInternalError) as error:
                self.close()
                reason = str(error).splitlines()[0]
                raise UserError(f"{folder / 'study.db'}: not readable as a study ({reason})") from None
            self._agree(json.loads(json.dumps(settings)))

    def _locked(self) -> Any:
        return locked(self.locks / "study")

    def _agree(self, settings: dict[str, Any]) -> None:
        """Record the settings and enqueue the base flags, or refuse other settings."""
        there = self.study.user_attrs.get("settings")
        if there is None:
            self.study.enqueue_trial(self._parameters(self.default), user_attrs={"default": True})
            self.study.set_user_attr("settings", settings)
            return
        names = [name for name in settings if settings[name] != there.get(name)]
        if names:
            said = "; ".join(f"{name} {there.get(name)} there, {settings[name]} here" for name in names)
            raise UserError(f"{self.folder} holds another study: {said}; use the same options or another --study")

    def _parameters(self, values: Mapping[str, float]) -> dict[str, float]:
        return {knob.parameter: knob.to_parameter(values[knob.name]) for knob in self.space}

    def close(self) -> None:
        """Let go of this worker's lock; call it when nothing of it is running."""
        if self._alive is not None:
            (self.locks / self.worker).unlink(missing_ok=True)
            self._alive.close()
            self._alive = None

    def next_trial(self, total: int) -> "Trial | None":
        """Begin a trial, or return None where `total` are finished or running.

        Its user attributes hold `values` (flag -> value) and `folder` (name of its run folder).
        """
        with self._locked():
            self._take_over()
            count = sum(not self.is_interrupted(t) for t in self.trials() if t.state.name != "WAITING")
            if count >= total:
                return None
            self.study.sampler = make_sampler(self.seed, len(self.study.get_trials(deepcopy=False)))
            trial = self.study.ask()
            trial.set_user_attr("worker", self.worker)
            values = {knob.name: knob.suggest(trial) for knob in self.space}
            trial.set_user_attr("values", dict(self.default) if "default" in trial.user_attrs else values)
            if "folder" not in trial.user_attrs:
                trial.set_user_attr("folder", f"{trial.number:04d}")
            return trial

    def trials(self) -> "list[FrozenTrial]":
        """Return all trials, waiting and interrupted ones included."""
        return self.study.get_trials(deepcopy=False)

    def is_interrupted(self, trial: "FrozenTrial") -> bool:
        """Tell whether a trial was cut short; another one, with the same values and folder, goes on with it."""
        return trial.number in self.study.user_attrs.get("interrupted", [])

    def running(self) -> int:
        """Return how many trials are with workers that live, after taking over those of dead ones."""
        with self._locked():
            self._take_over()
            return sum(trial.state.name == "RUNNING" for trial in self.trials())

    def wait_for_others(self, total: int, seconds: float = 2.0) -> "Trial | None":
        """Wait until `total` trials are finished; return one to do where another worker leaves it."""
        said = False
        while running := self.running():
            if (trial := self.next_trial(total)) is not None:
                return trial
            if not said:
                print(f"waiting for {running} trial(s) of other workers", flush=True)
                said = True
            time.sleep(seconds)
        return self.next_trial(total)

    def interrupt(self, trial: "Trial") -> None:
        """Put a trial that was cut short back, for any worker to go on with."""
        with self._locked():
            self._put_back(trial.number)

    def finish(self, trial: "Trial", state: str, value: float | None = None) -> None:
        """End a trial as COMPLETE with its value, PRUNED or FAIL."""
        from optuna.trial import TrialState

        with self._locked():
            self.study.tell(trial, value, state=TrialState[state])

    def _take_over(self) -> None:
        """Put back the trials whose worker is gone."""
        for trial in self.trials():
            if trial.state.name != "RUNNING":
                continue
            worker = trial.user_attrs.get("worker")
            if worker is None:  # it died as it began
                self._put_back(trial.number)
            elif (worker != self.worker or self._alive is None) and (lock := try_lock(self.locks / worker)):
                self._put_back(trial.number)
                (self.locks / worker).unlink(missing_ok=True)
                lock.close()

    def _put_back(self, number: int) -> None:
        from optuna.trial import TrialState

        trial = self.trials()[number]
        known = self.study.user_attrs.get("interrupted", [])
        self.study.set_user_attr("interrupted", sorted({*known, number}))
        self.study.tell(number, state=TrialState.FAIL)
        kept: dict[str, Any] = {n: trial.user_attrs[n] for n in ("default", "folder") if n in trial.user_attrs}
        if trial.params or "default" in kept:
            self.study.enqueue_trial(trial.params or self._parameters(self.default), user_attrs=kept)

    def best(self) -> "FrozenTrial | None":
        """Return the finished trial with the least value, the earlier one of equals."""
        done = [trial for trial in self.trials() if trial.state.name == "COMPLETE"]
        return min(done, key=lambda trial: (trial.value, trial.number), default=None)
