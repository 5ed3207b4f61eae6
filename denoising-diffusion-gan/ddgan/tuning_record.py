"""From Optuna's study to study.json, from which the page is made."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from comparison import studies
from comparison.files import write_json
from comparison.runs import read_config

from ddgan.tuning import locked
from ddgan.tuning_page import FEWEST, STUDY, rewrite_pages

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    from ddgan.tuning import Search
    from ddgan.tuning_trials import Bench


def write_study(
    study: "Search", bench: "Bench", options: Mapping[str, Any], confirmed: Sequence[Mapping[str, Any]]
) -> None:
    """Write study.json and everything that is made from it."""
    done = [trial for trial in study.trials() if trial.state.is_finished() and not study.is_interrupted(trial)]
    config = study.folder / "trials" / done[0].user_attrs["folder"] / "config.json"
    found = {
        "schema": studies.SCHEMA,
        "study": STUDY,
        "options": dict(options),
        "space": [
            {"name": k.name, "low": k.low, "high": k.high, "default": study.default[k.name]} for k in study.space
        ],
        "scoring": bench.scorer.describe(),
        "floor": bench.scorer.floor(),
        "training": studies.training_facts(read_config(config)),
        "trials": [_row(trial, place) for place, trial in enumerate(sorted(done, key=lambda t: t.number))],
        "importance": {"final": importance(study, None), "first": importance(study, options["rungs"][0])},
        "confirm": list(confirmed),
    }
    with locked(study.locks / "page"):
        write_json(study.folder / "study.json", found)
        rewrite_pages(study.folder)


def _row(trial: "FrozenTrial", place: int) -> dict[str, Any]:
    """Return what study.json says of a finished trial."""
    facts, states = trial.user_attrs, {"COMPLETE": "finished", "PRUNED": "pruned", "FAIL": "failed"}
    row = {"number": place, "state": "diverged" if facts.get("diverged") else states[trial.state.name]}
    scores = [{"images": int(images), **entry} for images, entry in facts.get("scores", {}).items()]
    return {**row, "default": bool(facts.get("default")), "values": facts["values"], "scores": scores}


def importance(study: "Search", images: int | None) -> dict[str, float]:
    """Return each flag's share in whether a trial is among the best tenth; PED-ANOVA (Watanabe et al. 2023).

    Args:
        study: of the trials.
        images: of the rung whose distance counts, also of trials that ended there; None for finished trials only.

    Returns:
        Flag -> share, empty where too few trials tell.
    """
    import optuna

    trials = [trial for trial in study.trials() if images is None or images in trial.intermediate_values]
    trials = [trial for trial in trials if images is not None or trial.state.name == "COMPLETE"]
    if len(trials) < FEWEST:
        return {}
    copy = optuna.create_study(direction="minimize")
    for trial in trials:
        value = trial.value if images is None else trial.intermediate_values[images]
        copy.add_trial(optuna.trial.create_trial(params=trial.params, distributions=trial.distributions, value=value))
    evaluator = optuna.importance.PedAnovaImportanceEvaluator()
    found = optuna.importance.get_param_importances(copy, evaluator=evaluator)
    names = {knob.parameter: knob.name for knob in study.space}
    return {names[name]: round(float(share), 4) for name, share in found.items()}
