"""The page of a search: README.md, trials.csv, best_flags.txt and two pictures, from study.json and nothing else."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from comparison import formatting, studies
from comparison.files import read_json, write_text
from comparison.report import study_page
from comparison.report.study_page import join
from comparison.report.tradeoffs import QUALITY

from ddgan.options import MODEL
from ddgan.tuning import PRUNING_FROM, STARTUP_TRIALS
from ddgan.tuning_trials import replace_flags

STUDY = "ddgan-tuning"  # what study.json says it is, whatever the folder's name
SHOWN = 10  # trials in the page's table
FEWEST = 8  # trials, below which nothing is told of importance or of foresight
Study = dict[str, Any]
Row = Mapping[str, Any]


def rewrite_pages(folder: Path) -> None:
    """Write README.md, the pictures, trials.csv and best_flags.txt of the study.json in `folder`.

    Raises:
        UserError: it is missing, or of another study or schema.
    """
    study_page.rewrite(folder, STUDY, page, draw_pictures)
    study = read_json(folder / "study.json")
    write_text(folder / "trials.csv", table_of_trials(study))
    if best := winner(study):
        write_text(folder / "best_flags.txt", flag_line(study, best) + "\n")


def winner(study: Study) -> Row | None:
    """Return the finished trial of the least distance; the base flags count as well."""
    done = [row for row in study["trials"] if row["state"] == "finished"]
    return min(done, key=lambda row: row["scores"][-1]["value"], default=None)


def base_row(study: Study) -> Row | None:
    """Return the finished trial of the base flags."""
    return next((row for row in study["trials"] if row["default"] and row["state"] == "finished"), None)


def flag_line(study: Study, row: Row) -> str:
    """Return the flags of a trial as train_ddgan.py takes them."""
    values = {} if row["default"] else row["values"]
    return " ".join(
        [*replace_flags(study["options"]["base"], values), "--max_images", str(study["options"]["max_images"])]
    )


def table_of_trials(study: Study) -> str:
    """Return trials.csv: a row per trial, a column per flag searched and per rung."""
    names, rungs = [knob["name"] for knob in study["space"]], study["options"]["rungs"]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    distances = [f"frechet_distance_at_{images}" for images in rungs]
    writer.writerow(["trial", "state", *names, *distances, "images_seen", "seconds"])
    for row in study["trials"]:
        found = {score["images"]: score["value"] for score in row["scores"]}
        last = row["scores"][-1] if row["scores"] else {}
        cells = [row["values"][name] for name in names] + [found.get(images, "") for images in rungs]
        writer.writerow([row["number"], row["state"], *cells, last.get("images_seen", ""), last.get("seconds", "")])
    return text.getvalue()


def spread(study: Study, role: str) -> dict[str, Any] | None:
    """Return mean, standard deviation and number of the trainings of a role in the confirmation, and how many diverged.

    None where there are none.
    """
    mine = [entry for entry in study["confirm"] if entry["role"] == role]
    values = [entry["value"] for entry in mine if entry["value"] is not None]
    if not mine:
        return None
    mean = sum(values) / len(values) if values else math.nan
    variance = sum((v - mean) ** 2 for v in values) / (len(values) - 1) if len(values) > 1 else math.nan
    return {"values": values, "mean": mean, "deviation": math.sqrt(variance), "diverged": len(mine) - len(values)}


def gain(study: Study) -> tuple[float, float] | None:
    """Return by how much the winner's mean distance is below that of the base flags, and the half 95% interval of that.

    Student's t for two samples with equal variances. None where there are not two trainings of each that did not
    diverge.
    """
    default, best = spread(study, "default"), spread(study, "winner")
    if not default or not best or min(len(default["values"]), len(best["values"])) < 2:
        return None
    n, m = len(default["values"]), len(best["values"])
    variance = ((n - 1) * default["deviation"] ** 2 + (m - 1) * best["deviation"] ** 2) / (n + m - 2)
    quantile = studies.STUDENT[min(n + m - 2, len(studies.STUDENT)) - 1]
    return default["mean"] - best["mean"], quantile * math.sqrt(variance * (1 / n + 1 / m))


def sentences(study: Study) -> list[str]:
    """Return what the numbers say."""
    said = [_course(study)]
    best, base = winner(study), base_row(study)
    if best is None:
        return [*said, "No trial finished."]
    told = formatting.metric(QUALITY, best["scores"][-1])
    if best["default"]:
        told = f"No trial is better than the base flags ({told})."
        return [*said, told, *_foresight(study), *_importance_sentence(study)]
    before = (
        f", the base flags' {formatting.metric(QUALITY, base['scores'][-1])}" if base else "; the base flags failed"
    )
    said.append(
        f"Best in the search: trial {best['number']} ({told}{before}), with one seed each: the best of many noisy "
        "numbers looks better than it is. The intervals are of another draw from the same training."
    )
    return [*said, *_confirmation(study), *_foresight(study), *_importance_sentence(study)]


def _course(study: Study) -> str:
    rows, rungs = study["trials"], study["options"]["rungs"]
    states = {
        state: sum(row["state"] == state for row in rows) for state in ("finished", "pruned", "diverged", "failed")
    }
    last = [row["scores"][-1]["images"] for row in rows if row["state"] == "pruned"]
    ended = [f"{last.count(images)} at {images:,} images" for images in rungs[:-1]]
    pruned = f"{states['pruned']} pruned ({formatting.listed(ended)})" if states["pruned"] else "none pruned"
    rest = [f"{states[state]} {state}" for state in ("diverged", "failed") if states[state]]
    seconds = sum(row["scores"][-1]["seconds"] for row in rows if row["scores"])
    parts = formatting.listed([f"{states['finished']} finished", pruned, *rest])
    return f"{len(rows)} trials: {parts}; {formatting.seconds(seconds)} of training."


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Return Spearman's rank correlation of two series of equal length, at least 2, without ties."""
    ranks = [{value: rank for rank, value in enumerate(sorted(series))} for series in (first, second)]
    squares = sum((ranks[0][a] - ranks[1][b]) ** 2 for a, b in zip(first, second, strict=True))
    return 1 - 6 * squares / (len(first) * (len(first) ** 2 - 1))


def _foresight(study: Study) -> list[str]:
    """Say how well the rungs foretell the end."""
    done = [[score["value"] for score in row["scores"]] for row in study["trials"] if row["state"] == "finished"]
    if len(done) < FEWEST or len(done[0]) < 2:
        return []
    told = [
        f"{rank_correlation([row[place] for row in done], [row[-1] for row in done]):.2f} at {images:,}"
        for place, images in enumerate(study["options"]["rungs"][:-1])
    ]
    return [
        f"Rank correlation (Spearman) of the distance at a rung with the final one, over the {len(done)} finished "
        f"trials: {formatting.listed(told)} images. The nearer to 0, the more of the pruning was chance."
    ]


def _confirmation(study: Study) -> list[str]:
    default, best, found = spread(study, "default"), spread(study, "winner"), gain(study)
    if not default or not best:
        return ["The winner was not trained with other seeds: whether it helps is not known."]
    told = []
    for role, name in ((best, "winner"), (default, "base flags")):
        diverged = f", {role['diverged']} diverged" if role["diverged"] else ""
        told.append(f"{name} {_mean(role)} over {len(role['values'])} seeds{diverged}")
    line = f"With other seeds than the search's: {formatting.listed(told)} (mean ± standard deviation)."
    if found is None:
        return [line]
    difference, half = found
    change = f"winner minus base flags {formatting.with_error(-difference, half)}, 95% interval by Student's t"
    if difference > half:
        return [line, f"**The winner helps**: {change}."]
    if difference < -half:
        return [line, f"**The winner is worse than the base flags**: {change}."]
    return [
        line,
        f"**It is not shown that the winner helps**: {change}, which holds 0. Trials that differ by no more than the "
        "seeds do cannot be told apart by one seed each.",
    ]


def _mean(role: Row) -> str:
    return (
        formatting.with_error(role["mean"], role["deviation"])
        if len(role["values"]) > 1
        else formatting.plain(role["mean"])
    )


def _importance_sentence(study: Study) -> list[str]:
    first = study["importance"]["first"]
    if not first:
        return ["Too few trials to say which flag matters."]
    leading = [f"{name} ({100 * share:.0f}%)" for name, share in list(first.items())[:3]]
    rung = study["options"]["rungs"][0]
    return [
        f"What sets the best tenth of the trials apart, by the distance at {rung:,} images: "
        f"{formatting.listed(leading)} before the other flags."
    ]


def page(study: Study) -> str:
    """Return README.md."""
    options, facts = study["options"], study["training"]
    score = study["scoring"]
    return join(
        "# Study: tuning DDGAN",
        "Which training flags give DDGAN the least Frechet distance at a fixed number of training images seen?",
        f"{options['max_images']:,} images of {score['reference']['name']} at {score['image_size']} pixels per full "
        f"trial; {_plan(study)} The base flags are the first trial. {study_page.machine([{'training': facts}])}",
        f"{score['n']} images of each trial are scored against as many training images "
        f"({score['reference']['fingerprint']}) in features of the {score['extractor']['name']}: relative within this "
        f"page, not comparable with published figures. Real images get {formatting.metric(QUALITY, study['floor'])}.",
        "## What the numbers say",
        sentences(study),
        "![Distance of each trial](history.png)",
        "## Best trials",
        _best_table(study),
        *_confirmation_table(study),
        "![Importance of the flags](importance.png)" if any(study["importance"].values()) else None,
        "## Use",
        _use(study),
        "## What it does not say",
        [
            f"anything of other networks, data or budgets: {options['max_images']:,} images are a short training, and "
            "what learns fastest at first need not end best;",
            "which flag matters alone: the sampler tries good regions more often, so the importance is of this search;",
            f"that the values are exact: one seed per trial, and trials are ended early by a noisy number of "
            f"{score['n']} images.",
        ],
        "`trials.csv` has every trial. The command at the top of `tune_ddgan.py` repeats the search.",
    )


def _plan(study: Study) -> str:
    rungs = study["options"]["rungs"]
    space = [f"`{k['name']}` {k['low']:g} to {k['high']:g}" for k in study["space"]]
    pruning = "no trial is ended early"
    if rungs[:-1]:
        pruning = (
            f"a trial that after {' or '.join(f'{r:,}' for r in rungs[:-1])} images is worse than the median of the "
            f"finished ones ends there, once {PRUNING_FROM} have finished"
        )
    return (
        f"searched on logarithmic scales: {formatting.listed(space)}. TPE sampler, the first {STARTUP_TRIALS} trials "
        f"at random; {pruning}."
    )


def _best_table(study: Study) -> str:
    names = [knob["name"] for knob in study["space"]]
    done = sorted((r for r in study["trials"] if r["state"] == "finished"), key=lambda r: r["scores"][-1]["value"])
    rows = done[:SHOWN] + [row for row in done[SHOWN:] if row["default"]]
    cells = [
        [
            f"{row['number']} (base flags)" if row["default"] else str(row["number"]),
            *(f"{row['values'][name]:.6g}" for name in names),
            formatting.metric(QUALITY, row["scores"][-1]),
        ]
        for row in rows
    ]
    return formatting.markdown_table(["trial", *names, "Frechet"], cells)


def _confirmation_table(study: Study) -> list[str]:
    if not study["confirm"]:
        return []
    seeds = sorted({entry["seed"] for entry in study["confirm"]})
    cells = []
    for role, name in (("default", "base flags"), ("winner", "winner")):
        mine = {entry["seed"]: entry for entry in study["confirm"] if entry["role"] == role}
        told = [
            "diverged" if mine[seed]["value"] is None else formatting.plain(mine[seed]["value"], 4) for seed in seeds
        ]
        cells.append([name, *told, _mean(spread(study, role) or {})])
    head = ["", *(f"seed {seed}" for seed in seeds), "mean ± standard deviation"]
    return ["## Winner and base flags, other seeds", formatting.markdown_table(head, cells)]


def _use(study: Study) -> str:
    if not (best := winner(study)):
        return "No trial finished, so there is nothing to use."
    return (
        f"`best_flags.txt`, the best trial of the search, for `train_ddgan.py`:\n\n```\n{flag_line(study, best)}\n```"
    )


def draw_pictures(study: Study, out: Path) -> None:
    """Draw history.png, and importance.png where there is any."""
    draw_history(study, out / "history.png")
    if any(study["importance"].values()):
        draw_importance(study, out / "importance.png")


def draw_history(study: Study, path: Path) -> None:
    """Draw the distance of each trial, the best so far, and that of the base flags."""
    from comparison.report.plots import COLOURS, CONTROL, DPI, INK, save, tidy
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.6), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    axes.set_yscale("log")
    looks = {"finished": ("o", COLOURS[MODEL]), "pruned": ("x", CONTROL), "failed": ("^", INK), "diverged": ("^", INK)}
    best, line = math.inf, []
    for state, (marker, colour) in looks.items():
        mine = [row for row in study["trials"] if row["state"] == state and row["scores"]]
        heights = [row["scores"][-1]["value"] for row in mine]
        label = "pruned (its last distance)" if state == "pruned" else state
        if mine:
            axes.scatter([r["number"] for r in mine], heights, marker=marker, color=colour, label=label, s=32, zorder=3)
    for row in study["trials"]:
        if row["state"] == "finished":
            best = min(best, row["scores"][-1]["value"])
        line.append(best)
    axes.step(range(len(line)), line, where="post", color=COLOURS[MODEL], linewidth=1.4, label="best so far")
    if base := base_row(study):
        height = base["scores"][-1]["value"]
        axes.axhline(height, color=INK, linestyle="--", linewidth=1, label="base flags")
    axes.yaxis.set_major_formatter(lambda value, _: formatting.plain(value))
    axes.yaxis.set_minor_formatter(lambda value, _: formatting.plain(value) if f"{value:.0e}"[0] in "235" else "")
    axes.locator_params(axis="x", integer=True)
    axes.set_xlabel("trial")
    axes.set_ylabel("Frechet distance\n(log, lower is better)")
    figure.legend(loc="outside upper center", ncols=5, frameon=False, fontsize=8.5)
    tidy(axes)
    save(figure, path)


def draw_importance(study: Study, path: Path) -> None:
    """Draw the share of each flag, by the final distance and by that of the first rung."""
    from comparison.report.plots import COLOURS, CONTROL, DPI, save, tidy
    from matplotlib.figure import Figure

    rung = study["options"]["rungs"][0]
    groups = [
        ("first", f"all trials, distance at {rung:,} images", COLOURS[MODEL]),
        ("final", "finished trials, final distance", CONTROL),
    ]
    groups = [group for group in groups if study["importance"][group[0]]]
    names = list(study["importance"][groups[0][0]])
    figure = Figure(figsize=(6.4, 0.42 * len(names) + 1.3), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    height = 0.76 / len(groups)
    for turn, (key, label, colour) in enumerate(groups):
        found = study["importance"][key]
        places = [i + (turn - (len(groups) - 1) / 2) * height for i in range(len(names))]
        axes.barh(places, [found.get(name, 0) for name in names], height=height, color=colour, label=label)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlabel("importance (PED-ANOVA, share)")
    figure.legend(loc="outside upper center", ncols=2, frameon=False, fontsize=8.5)
    tidy(axes, "x")
    save(figure, path)
