"""The page of a search: README.md, trials.csv, best_flags.txt and two pictures, from study.json alone."""

import csv
import warnings
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import optuna
from comparison.files import atomic, read_json, write_text
from comparison.formatting import listed, markdown_table, metric, plain, seconds, with_error
from comparison.report import study_page
from matplotlib import pyplot
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.importance import PedAnovaImportanceEvaluator
from optuna.trial import TrialState, create_trial
from optuna.visualization.matplotlib import plot_optimization_history, plot_param_importances
from scipy.stats import ttest_ind

from ddgan.tuning import STARTUP_TRIALS, parameter

QUALITY, SHOWN = "frechet_distance", 10  # trials in the table
Study = dict[str, Any]


def rewrite_pages(folder: Path) -> None:
    """Write everything that is made from the study.json of a folder; raise UserError where that is unusable."""
    study_page.rewrite(folder, "ddgan-tuning", page, draw_pictures)
    study = read_json(folder / "study.json")
    names, rungs = [knob["name"] for knob in study["space"]], study["options"]["rungs"]
    distances = [f"frechet_distance_at_{images}" for images in rungs]
    with atomic(folder / "trials.csv") as path, open(path, "w", newline="") as file:
        table = csv.DictWriter(
            file, ["trial", "state", *names, *distances, "images_seen", "seconds"], lineterminator="\n"
        )
        table.writeheader()
        for row in study["trials"]:
            cells = {f"frechet_distance_at_{score['images']}": score["value"] for score in row["scores"]}
            cells |= {name: score[name] for score in row["scores"][-1:] for name in ("images_seen", "seconds")}
            table.writerow({"trial": row["number"], "state": row["state"], **row["values"], **cells})
    if ranked := ranking(study):
        write_text(folder / "best_flags.txt", flag_line(study, ranked[0]) + "\n")


def ranking(study: Study) -> list[dict[str, Any]]:
    """Return the finished trials, the best one first."""
    done = [row for row in study["trials"] if row["state"] == "finished"]
    return sorted(done, key=lambda row: row["scores"][-1]["value"])


def flag_line(study: Study, row: dict[str, Any]) -> str:
    """Return the flags of a trial as train_ddgan.py takes them."""
    words = list(study["options"]["base"])
    for name, value in {} if row["default"] else row["values"].items():
        place = words.index(f"--{name}") if f"--{name}" in words else len(words)
        words[place : place + 2] = [f"--{name}", f"{value:.10g}"]
    return " ".join([*words, "--max_images", str(study["options"]["rungs"][-1])])


def verdict(study: Study) -> list[str]:
    """Return what the trainings with other seeds say, by Student's t for two samples with equal variances."""
    if not study["confirm"]:
        return ["The winner was not trained with other seeds: whether it helps is not known."]
    groups, told = [], []
    for role, name in (("winner", "winner"), ("default", "base flags")):
        every = [entry["value"] for entry in study["confirm"] if entry["role"] == role]
        values = [value for value in every if value is not None]
        average = f" {with_error(mean(values), stdev(values))}" if len(values) > 1 else ""
        told.append(f"{name}{average} ({', '.join('diverged' if v is None else plain(v, 4) for v in every)})")
        groups.append(values)
    line = f"With other seeds than the search's: {listed(told)}"
    if min(map(len, groups)) < 2:
        return [f"{line}."]
    low, high = ttest_ind(*groups).confidence_interval()
    says = "The winner helps" if high < 0 else "It is not shown that the winner helps"
    says = "The winner is worse than the base flags" if low > 0 else says
    change = with_error((low + high) / 2, (high - low) / 2)
    line += ", mean ± standard deviation."
    return [line, f"**{says}**: winner minus base flags {change}, 95% interval by Student's t."]


def page(study: Study) -> str:
    """Return README.md."""
    score, rungs, ranked = study["scoring"], study["options"]["rungs"], ranking(study)
    states, names = [row["state"] for row in study["trials"]], [knob["name"] for knob in study["space"]]
    spent = seconds(sum(row["scores"][-1]["seconds"] for row in study["trials"] if row["scores"]))
    counts = [f"{states.count(state)} {state}" for state in ("finished", "pruned", "diverged", "failed")]
    results, cells, use = [f"{len(states)} trials: {listed(counts)}; {spent} of training."], [], "No trial finished."
    if ranked:
        base = next((row["scores"][-1] for row in ranked if row["default"]), None)
        results.append(
            f"Best in the search: trial {ranked[0]['number']} with {metric(QUALITY, ranked[0]['scores'][-1])}; base "
            f"flags {metric(QUALITY, base)}. One seed each, so the best of many noisy trials is optimistic (selection "
            "bias). Intervals cover resampling from the same checkpoint."
        )
        results += [] if ranked[0]["default"] else verdict(study)
        use = f"`best_flags.txt`, for `train_ddgan.py`:\n\n```\n{flag_line(study, ranked[0])}\n```"
    for row in [row for place, row in enumerate(ranked) if place < SHOWN or row["default"]]:
        label = f"{row['number']} (base flags)" if row["default"] else str(row["number"])
        cells.append([label, *(f"{row['values'][n]:.6g}" for n in names), metric(QUALITY, row["scores"][-1])])
    space = listed([f"`{k['name']}` {k['low']:g} to {k['high']:g}" for k in study["space"]])
    pruning = (
        f" A trial that is worse than the median after {' or '.join(f'{r:,}' for r in rungs[:-1])} images is pruned."
    )
    return study_page.join(
        "# Study: tuning DDGAN",
        "Which training flags give DDGAN the smallest Frechet distance after a fixed number of training images?",
        f"A full trial trains on {rungs[-1]:,} images of {score['reference']['name']} at {score['image_size']} pixels. "
        f"Searched on logarithmic scales: {space}. The base flags come first, then {STARTUP_TRIALS} random trials, "
        f"then those of Optuna's TPE sampler.{pruning if rungs[:-1] else ''} {study_page.machine([study])}",
        f"{score['n']} images of each trial are scored against as many training images "
        f"({score['reference']['fingerprint']}) in features of the {score['extractor']['name']}: relative within this "
        f"page, not comparable with published figures. Real images score {metric(QUALITY, study['floor'])}.",
        *("## Results", results, "![Last distance of each trial](history.png)"),
        *("## Best trials", markdown_table(["trial", *names, "Frechet"], cells)),
        "![Importance of the flags](importance.png)",
        *("## Use", use, "## Limitations"),
        [
            "The result holds for these networks, data and budget: what learns fastest at first need not end best.",
            "The importance is of this search, by PED-ANOVA: the sampler tries good regions more often.",
        ],
        "`trials.csv` has every trial. The command at the top of `tune_ddgan.py` repeats the search.",
    )


def draw_pictures(study: Study, folder: Path) -> None:
    """Draw history.png by each trial's last distance, and importance.png by its first, of equal budgets."""
    trials, first = optuna.create_study(), study["options"]["rungs"][0]
    for row in study["trials"]:
        params: dict[str, float] = {}
        distributions: dict[str, BaseDistribution] = {}
        for knob in study["space"]:
            key, value = parameter(knob["name"], row["values"][knob["name"]])
            low, high = sorted(parameter(knob["name"], knob[bound])[1] for bound in ("low", "high"))
            kind: Any = IntDistribution if isinstance(low, int) else FloatDistribution
            params[key], distributions[key] = min(max(value, low), high), kind(low, high, log=True)
        scores = {score["images"]: score["value"] for score in row["scores"]}
        state: Any = {"value": [*scores.values()][-1]} if scores else {"state": TrialState.PRUNED}
        trials.add_trial(create_trial(params=params, distributions=distributions, intermediate_values=scores, **state))
    pyplot.switch_backend("agg")
    with (
        pyplot.rc_context(),
        warnings.catch_warnings(action="ignore"),
    ):  # Optuna sets a style; PED-ANOVA seeks low values
        plot_optimization_history(trials, target_name="last Frechet distance").set_yscale("log")
        save(folder / "history.png")
        plot_param_importances(
            *(trials, PedAnovaImportanceEvaluator()),
            target=lambda trial: trial.intermediate_values[first],
            target_name=f"by distance at {first:,} images",
        )
        save(folder / "importance.png")


def save(path: Path) -> None:
    """Write the figure that Optuna has drawn, the same bytes for the same figure."""
    with atomic(path) as temporary:
        pyplot.savefig(temporary, bbox_inches="tight", metadata={"Software": None})
    pyplot.close()
