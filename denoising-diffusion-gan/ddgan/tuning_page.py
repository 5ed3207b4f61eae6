"""Page of a search: README.md, trials.csv, best_flags.txt and two figures, from study.json alone."""

import csv
import warnings
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import optuna
from comparison.files import atomic, read_json, write_text
from comparison.formatting import format_interval, format_number, join_words, markdown_table, metric, seconds
from comparison.report import study_page
from matplotlib import pyplot
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.importance import PedAnovaImportanceEvaluator
from optuna.trial import TrialState, create_trial
from optuna.visualization.matplotlib import plot_optimization_history, plot_param_importances
from scipy.stats import ttest_ind

from ddgan.tuning import STARTUP_TRIALS, parameter

QUALITY = "frechet_distance"
MAX_ROWS = 10  # trials in the table
Study = dict[str, Any]


def rewrite_pages(folder: Path) -> None:
    """Write the files that a folder's study.json determines; raise UserError if it is damaged."""
    study_page.rewrite(folder, "ddgan-tuning", page, draw_figures)
    study = read_json(folder / "study.json")
    names, rungs = [flag["name"] for flag in study["space"]], study["options"]["rungs"]
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
    """Return the finished trials, best first."""
    done = [row for row in study["trials"] if row["state"] == "finished"]
    return sorted(done, key=lambda row: row["scores"][-1]["value"])


def flag_line(study: Study, row: dict[str, Any]) -> str:
    """Return the flags of a trial for train_ddgan.py."""
    arguments = list(study["options"]["base"])
    for name, value in {} if row["default"] else row["values"].items():
        start = arguments.index(f"--{name}") if f"--{name}" in arguments else len(arguments)
        arguments[start : start + 2] = [f"--{name}", f"{value:.10g}"]
    return " ".join([*arguments, "--max_images", str(study["options"]["rungs"][-1])])


def verdict(study: Study) -> list[str]:
    """Return sentences that compare winner and base flags by a t-test for two samples with equal variances."""
    if not study["confirm"]:
        return ["The winner was not trained with other seeds, so it is unknown whether it helps."]
    groups, results = [], []
    for role, name in (("winner", "winner"), ("default", "base flags")):
        all_values = [entry["value"] for entry in study["confirm"] if entry["role"] == role]
        values = [value for value in all_values if value is not None]
        average = f" {format_interval(mean(values), stdev(values))}" if len(values) > 1 else ""
        results.append(
            f"{name}{average} ({', '.join('diverged' if v is None else format_number(v, 4) for v in all_values)})"
        )
        groups.append(values)
    line = f"With seeds other than the search's: {join_words(results)}"
    if min(map(len, groups)) < 2:
        return [f"{line}."]
    low, high = ttest_ind(*groups).confidence_interval()
    conclusion = "The winner is better than the base flags" if high < 0 else "Inconclusive"
    conclusion = "The winner is worse than the base flags" if low > 0 else conclusion
    change = format_interval((low + high) / 2, (high - low) / 2)
    line += ", mean ± standard deviation."
    return [line, f"**{conclusion}**: winner minus base flags {change}, 95% interval by Student's t."]


def page(study: Study) -> str:
    """Return README.md."""
    score, rungs, ranked = study["scoring"], study["options"]["rungs"], ranking(study)
    states, names = [row["state"] for row in study["trials"]], [flag["name"] for flag in study["space"]]
    spent = seconds(sum(row["scores"][-1]["seconds"] for row in study["trials"] if row["scores"]))
    counts = [f"{states.count(state)} {state}" for state in ("finished", "pruned", "diverged", "failed")]
    results, cells, use = (
        [f"{len(states)} trials: {join_words(counts)}; {spent} of training."],
        [],
        "No trial finished.",
    )
    if ranked:
        base = next((row["scores"][-1] for row in ranked if row["default"]), None)
        results.append(
            f"Best in the search: trial {ranked[0]['number']} with {metric(QUALITY, ranked[0]['scores'][-1])}; base "
            f"flags {metric(QUALITY, base)}. One seed each, so the best of many noisy trials is optimistic (selection "
            "bias). Intervals cover resampling from the same checkpoint."
        )
        results += [] if ranked[0]["default"] else verdict(study)
        use = f"`best_flags.txt`, for `train_ddgan.py`:\n\n```\n{flag_line(study, ranked[0])}\n```"
    for row in [row for rank, row in enumerate(ranked) if rank < MAX_ROWS or row["default"]]:
        label = f"{row['number']} (base flags)" if row["default"] else str(row["number"])
        cells.append([label, *(f"{row['values'][n]:.6g}" for n in names), metric(QUALITY, row["scores"][-1])])
    space = join_words([f"`{k['name']}` {k['low']:g} to {k['high']:g}" for k in study["space"]])
    pruning = (
        f" A trial that is worse than the median after {' or '.join(f'{r:,}' for r in rungs[:-1])} images is pruned."
    )
    return study_page.join(
        "# Study: tuning DDGAN",
        "Which training flags give DDGAN the lowest Frechet distance after a fixed number of training images?",
        f"A full trial trains on {rungs[-1]:,} images of {score['reference']['name']} at {score['image_size']} pixels. "
        f"Searched on logarithmic scales: {space}. The first trial has the base flags, the next {STARTUP_TRIALS} are "
        f"random, and Optuna's TPE sampler proposes the others.{pruning if rungs[:-1] else ''} "
        f"{study_page.machine([study])}",
        f"{score['n']} images of each trial are scored against as many training images "
        f"({score['reference']['fingerprint']}) in features of the {score['extractor']['name']}: relative "
        f"within this page, not comparable with published scores. Real images score {metric(QUALITY, study['floor'])}.",
        *("## Results", results, "![Last distance of each trial](history.png)"),
        *("## Best trials", markdown_table(["trial", *names, "Frechet"], cells)),
        "![Importance of the flags](importance.png)",
        *("## Use", use, "## Limitations"),
        [
            "The result holds for these networks, data and budget: early progress does not decide the final quality.",
            "The importance (PED-ANOVA) is biased: the sampler tries good regions more often.",
        ],
        "`trials.csv` lists every trial. The command at the top of `tune_ddgan.py` repeats the search.",
    )


def draw_figures(study: Study, folder: Path) -> None:
    """Plot history.png, each trial's last distance, and importance.png, by the first distances (equal budgets)."""
    trials, first = optuna.create_study(), study["options"]["rungs"][0]
    for row in study["trials"]:
        params: dict[str, float] = {}
        distributions: dict[str, BaseDistribution] = {}
        for flag in study["space"]:
            key, value = parameter(flag["name"], row["values"][flag["name"]])
            low, high = sorted(parameter(flag["name"], flag[bound])[1] for bound in ("low", "high"))
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
    """Write Optuna's current figure, without metadata that would change its bytes."""
    with atomic(path) as temporary:
        pyplot.savefig(temporary, bbox_inches="tight", metadata={"Software": None})
    pyplot.close()
