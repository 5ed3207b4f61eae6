"""results/report.py: rows, tables, pictures and pages, from files alone."""

import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import pytest
from comparison.cli import UserError
from comparison.data import shapes
from comparison.data.images import fingerprint, save_npz
from comparison.png import save_grid
from comparison.report import explore, page, tables
from comparison.report.pictures import PICTURES
from comparison.report.rows import by_training, read_rows

RUNS = [f"runs/{model}/made" for model in ("gans", "improved-diffusion", "denoising-diffusion-gan")]


def runs_of(folder):
    return [folder / run for run in RUNS]


def change(path, edit):
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def anchors_of(folder):
    return page.load_controls(folder / "report" / "anchors.json")


def make(folder, out, *, name="x", budget=None):
    return page.make_report(name, runs_of(folder), folder / "report" / "anchors.json", out, budget, None)


def cell(table, label, column):
    header, lines = table
    place = next(i for i, name in enumerate(header) if name.rstrip(" \N{UPWARDS ARROW}\N{DOWNWARDS ARROW}") == column)
    return next(line for line in lines if line[0] == label)[place]


@pytest.fixture
def no_pictures(monkeypatch):
    monkeypatch.setattr(page, "draw_pictures", lambda *_: [])


@pytest.fixture
def copy(made, tmp_path):
    shutil.copytree(made, tmp_path / "made")
    return tmp_path / "made"


@pytest.fixture
def rows(made):
    return read_rows(by_training(runs_of(made)), anchors_of(made))


@pytest.fixture(scope="module")
def written(made, tmp_path_factory):
    out = tmp_path_factory.mktemp("written")
    make(made, out, name="made", budget="seconds=1200")
    return out


def test_each_sampler_setting_is_a_row_with_the_facts_of_its_training(rows):
    labels = [row["label"] for row in rows]
    assert labels[1:5] == ["improved DDPM", *(f"improved DDPM, ddim{n}" for n in (5, 10, 50))]
    main, setting = rows[1], rows[2]
    assert (setting["nfe"], setting["training_seconds"]) == (5.0, main["training_seconds"])
    assert [[point["name"] for point in row["history"]] for row in (main, setting)] == [["25", "50", "75"], []]


def test_distilled_network_costs_its_teacher_too(copy):
    run = copy / RUNS[1]
    trained = {"step": 5, "images_seen": 60, "wall_seconds": 30.0}
    teacher = {"step": 900, "images_seen": 83072, "wall_seconds": 1200.4}
    change(run / "settings/ddim5/sampling.json", lambda s: s.update(trained={**trained, "teacher": teacher}))
    rows = {row["label"]: row for row in read_rows(by_training(runs_of(copy)), anchors_of(copy))}
    names = ("steps", "images_seen", "training_seconds")
    assert [rows["improved DDPM, ddim5"][name] for name in names] == [905, 83132, 1230.4]
    assert [rows["improved DDPM, ddim10"][name] for name in names] == [900, 83072, 1200.4]


def test_diverged_training_is_named(copy):
    change(copy / RUNS[0] / "config.json", lambda c: c.update(diverged={"steps": 70, "value": "loss_g nan"}))
    rows = read_rows(by_training(runs_of(copy)), anchors_of(copy))
    assert rows[0]["finished"] == "divergence (loss_g nan)"
    sentence = "DCGAN diverged; its samples are those of the last checkpoint before."
    assert sentence in page.caveats(rows, anchors_of(copy))


@pytest.mark.parametrize("part", ["settings/ddim5", "history/25"])
def test_scores_of_a_setting_or_checkpoint_that_do_not_belong_here_are_refused(copy, part):
    change(copy / RUNS[1] / part / "metrics.json", lambda m: m.update(seed=3))
    with pytest.raises(UserError, match="seed 3, but 0 in the controls"):
        read_rows(by_training(runs_of(copy)), anchors_of(copy))


def test_cost_comes_from_the_benchmark_and_says_what_is_extrapolated(rows):
    table = tables.cost_table(rows)
    assert cell(table, "improved DDPM", "latency, batch 1") == "232 ms"
    assert cell(table, "improved DDPM", "throughput") == "17.2/s, batch 128"
    assert cell(table, "improved DDPM", "50,000 images") == "~ 48.3 min"
    assert cell(table, "improved DDPM, ddim5", "GFLOP per image") == "1.55"
    assert "extrapolated" in tables.cost_notes(rows)


def test_times_without_a_benchmark_are_marked_and_measured_ones_are_not(copy):
    (copy / RUNS[0] / "timing.json").unlink()
    change(copy / RUNS[1] / "sampling.json", lambda s: s.update(images=50_000, seconds=12.0, sampler="another"))
    rows = read_rows([[copy / run] for run in RUNS[:2]], anchors_of(copy))
    table, notes = tables.cost_table(rows), tables.cost_notes(rows)
    assert cell(table, "DCGAN", "throughput").endswith("/s, batch 100 *")
    assert cell(table, "DCGAN", "latency, batch 1") == "-"
    assert cell(table, "improved DDPM", "50,000 images") == "12 s"
    assert "no benchmark was run" in notes
    protocol = tables.timing_protocol(rows)
    assert protocol.startswith("Timing protocol of DCGAN: after one warm-up batch. Timing protocol of improved DDPM")
    assert "extrapolated" not in tables.cost_notes(rows[1:2])
    caveat = "improved DDPM was timed with another sampler than its samples were generated by."
    assert caveat in page.caveats(rows, anchors_of(copy))


def test_memorised_samples_are_flagged_and_only_they(rows, made):
    rows[0]["metrics"]["memorised"] = {"value": 0.2, "interval": [0.18, 0.22], "n": 2000}
    table = tables.quality_table(anchors_of(made)["anchors"], rows)
    assert cell(table, "DCGAN", "memorised") == "20.0% flag"
    assert [line[0] for line in table[1] if "flag" in line[-1]] == ["copied training images", "DCGAN"]


def test_verdicts_on_controls_that_contradict_expectation_are_caveats(written):
    (caveat,) = json.loads((written / "report.json").read_text())["caveats"]
    assert "Kernel x1000 cannot tell 'JPEG, quality 10' from 'real images (floor)'" in caveat


def test_standard_metrics_have_a_table_of_their_own(copy, no_pictures):
    weights = {"file": "inception.pth", "sha256": "6726825d" + 56 * "0"}
    standard = {"weights": weights, "n": 2000, "reference": {"kind": "images", "n": 2000, "fingerprint": "ab"}}
    for run, value in zip(RUNS, (41.2, 50.0, 60.0), strict=True):
        scores = {"fid": {"value": value, "n": 2000}, "inception_recall": {"value": 0.3, "n": 1000}}
        added = {**standard, "metrics": scores}
        change(copy / run / "metrics.json", lambda m, added=added: m.update(standard=added))
    make(copy, copy / "out")
    text = (copy / "out" / "REPORT.md").read_text()
    assert "| DCGAN | 2,000 | 41.2 | 0.3 |" in text
    assert "recall on 1,000 images." in text
    assert "against the reference's images (2,000)" in text
    change(copy / RUNS[0] / "metrics.json", lambda m: m["standard"]["weights"].update(sha256="1"))
    with pytest.raises(UserError, match="have different weights"):
        make(copy, copy / "out")


def test_pictures_that_the_files_do_not_suffice_for_are_left_out(copy):
    for run in runs_of(copy):
        shutil.rmtree(run / "history")
        (run / "interpolation.png").unlink()
    out = copy / "report"
    save_grid(shapes.dataset(10, 16, limit=20)[0], out / "anchors-controls.png", columns=10)  # of two controls
    (out / "training.png").write_bytes(b"of an older report")
    assert not {"training.png", "interpolation.png", "controls.png"} & set(make(copy, out)["pictures"])
    assert not (out / "training.png").exists()
    assert "interpolation.png" not in (out / "REPORT.md").read_text()


def test_further_trainings_are_pooled_and_their_range_is_stated(copy, no_pictures):
    runs = runs_of(copy)
    for number, factor in ((1, 1.2), (2, 0.5)):
        further = runs[0].with_name(f"made-s{number}")
        shutil.copytree(runs[0], further)
        for path in further.rglob("metrics.json"):
            change(path, lambda content, factor=factor: scale(content["metrics"]["frechet_distance"], factor))
        runs.append(further)
    report = page.make_report("x", runs, copy / "report" / "anchors.json", copy / "report", None, None)
    assert [row["series"] for row in report["models"]].count("DCGAN") == 1
    row = report["models"][0]
    assert row["metrics"]["frechet_distance"]["trainings"] == pytest.approx([37.7, 45.24, 18.85])
    assert row["metrics"]["frechet_distance"]["value"] == pytest.approx(37.7 * 0.9)
    assert row["history"][0]["metrics"]["frechet_distance"]["value"] == pytest.approx(50 * 0.9)
    assert cell(tables.quality_table(report["controls"], report["models"]), "DCGAN", "Frechet") == (
        "33.9 ± 1.1 [18.9 to 45.2]"
    )
    text = (copy / "report" / "REPORT.md").read_text()
    assert "further trainings `made-s1` (900 steps, samples `ba`) and `made-s2` (900 steps, samples `ba`)" in text
    assert "**DCGAN** is best (33.9 ± 1.1 [18.9 to 45.2])" in text


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (
            lambda run: change(run / "config.json", lambda c: c.update(options={"lr": 2})),
            "made-s1: no further training",
        ),
        (lambda run: change(run / "config.json", lambda c: c["data"].update(fingerprint="f2")), "data.fingerprint f2"),
        (lambda run: (run / "metrics.json").unlink(), "made-s1: not scored, but made is"),
    ],
)
def test_other_and_unscored_trainings_are_not_pooled(copy, report, edit, says):
    further = copy / "runs/gans/made-s1"
    shutil.copytree(copy / RUNS[0], further)
    edit(further)
    assert says in refused(report(*RUNS, further), says)


def scale(entry, factor):
    entry["interval"] = [factor * bound for bound in entry["interval"]]
    entry["value"] *= factor


@pytest.mark.figures
def test_all_pictures_are_drawn_and_small_and_the_page_holds_them(written):
    text, html = ((written / f"REPORT.{kind}").read_text() for kind in ("md", "html"))
    assert json.loads((written / "report.json").read_text())["pictures"] == list(PICTURES)
    for name in PICTURES:
        assert f"]({name})" in text
        assert f'src="{name}"' not in html
        assert (written / name).stat().st_size < 400_000
    assert html.partition("<section")[0].count("data:image/webp;base64,") == 1
    assert html.partition("</section>")[2].count("data:image/webp;base64,") == len(PICTURES) - 1
    assert "<td" in html
    assert not re.search("https?:", html.split("<body>")[0])


def test_without_the_package_markdown_a_sentence_says_so(copy, no_pictures, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "markdown_it", None)
    (copy / "report" / "REPORT.html").write_text("of an older report")
    make(copy, copy / "report")
    assert not (copy / "report" / "REPORT.html").exists()
    assert capsys.readouterr().out.startswith("No REPORT.html: it needs the package markdown-it-py")


ATTACK = "<script>document.title='attacked'</script><img src=x onerror=\"document.title='attacked'\">"


@pytest.fixture
def attacked(copy, report, no_pictures):
    """Return REPORT.html of runs whose every text is an attack."""
    texts = dict.fromkeys(("device", "precision", "sampler", "protocol", "git_commit"), ATTACK)
    config = {"versions": {"torch": ATTACK}, **texts}
    for run in RUNS:
        change(copy / run / "config.json", lambda c: c.update(config, model=f"{c['model']}{ATTACK}"))
        change(copy / run / "config.json", lambda c: c["finished"].update(reason=ATTACK))
        change(copy / run / "sampling.json", lambda c: c.update(texts))
        change(copy / run / "timing.json", lambda c: c.update(texts))
    for file in (*copy.glob("runs/**/metrics.json"), copy / "report/anchors.json"):
        change(file, lambda c: c["reference"].update(name=ATTACK))
    note = f"{ATTACK} [a](javascript:alert(1)) [b](data:text/html,x) [c](https://example.org) ![d](../../secret.png)"
    done = report(*RUNS, data_note=note)
    assert done.returncode == 0, done.stderr
    return copy / "report" / "REPORT.html"


def test_hostile_texts_are_shown_and_not_run(attacked):
    page = attacked.read_text()
    assert "attacked" in page
    scripts = re.findall(r"<script[^>]*>(.*?)</script>", page, re.DOTALL)
    assert scripts == [explore.SCRIPT]
    assert f"script-src 'sha256-{explore.HASH}'" in page
    tags = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attributes: tags.append((tag, dict(attributes)))
    parser.feed(page)
    assert not [name for _, attributes in tags for name in attributes if name.startswith("on")]
    sources = [attributes["src"] for tag, attributes in tags if tag == "img"]
    assert all(source.startswith("data:image/webp") or not source for source in sources)
    assert re.findall(r'href="([^"]*)"', page).count("https://example.org") == 1
    assert not re.search(r'(href|src)="(javascript|data:text|[^"]*secret)', page)
    assert "Content-Security-Policy" in page


@pytest.fixture
def browse(tmp_path):
    """Return a function that gives the document of a page as Chromium has it after its script."""
    if not shutil.which("chromium"):
        pytest.skip("Chromium is not installed")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/browser", "--dump-dom"]

    def dump(address):
        return subprocess.run(["chromium", *flags, address], capture_output=True, text=True, timeout=60).stdout

    return dump


def test_browser_runs_nothing_of_a_hostile_report(attacked, browse):
    page = browse(attacked.as_uri())
    assert "<title>Comparison: " in page
    assert "<title>attacked" not in page


def shown(page):
    """Return the captions of the samples that are not hidden."""
    figures = re.findall(r"<figure ([^>]*)>.*?<figcaption>(.*?)</figcaption>", page, re.DOTALL)
    return [caption.partition(", Frechet")[0] for attributes, caption in figures if "hidden" not in attributes]


@pytest.fixture
def page_to_explore(copy, no_pictures):
    for run in runs_of(copy):
        for folder in (*run.glob("settings/*"), *run.glob("history/*")):
            shutil.copy(run / "samples.png", folder)
    make(copy, copy / "report")
    return copy / "report" / "REPORT.html"


def test_page_holds_every_sample_without_scripts(page_to_explore):
    labels = shown(page_to_explore.read_text())
    assert len(labels) == 6 + 3 * 3  # rows, and three checkpoints of each model
    assert {"DCGAN", "improved DDPM, ddim5", "DDGAN after 10 min of training"} <= set(labels)


def test_sliders_and_links_choose_the_samples(page_to_explore, browse):
    address = page_to_explore.as_uri()
    assert shown(browse(address)) == ["DCGAN", "improved DDPM", "DDGAN"]
    assert shown(browse(f"{address}#nfe=5")) == ["improved DDPM, ddim5"]
    page = browse(f"{address}#part=25&metric=coverage")
    assert shown(page) == [f"{name} after 5 min of training" for name in ("DCGAN", "improved DDPM", "DDGAN")]
    assert re.findall(r'data-metric="(\w+)" visibility="visible"', page) == ["coverage"]


def test_the_same_files_give_the_same_bytes(written, made, tmp_path):
    make(made, tmp_path, name="made", budget="seconds=1200")
    expected = {path.name: path.read_bytes() for path in written.iterdir()}
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == expected


def test_features_and_metrics_on_fewer_images_are_named(rows, made):
    controls = anchors_of(made)["anchors"]
    notes = tables.quality_notes(controls, rows, {"key": "cifar", "accuracy": 0.8891})
    assert "classifier-feature Frechet distance" in notes
    assert "test accuracy 88.9%" in notes
    assert "random" not in notes
    controls["floor"]["metrics"]["recall"]["n"] = 1500
    sentence = tables.numbers_sentence({"n": 2000, "controls": controls})
    assert sentence == "2,000 images per row, 1,500 of them for recall. The controls come first."


@pytest.fixture
def report(copy, script):
    def call(*runs, **options):
        flags = [word for name, value in options.items() for word in (f"--{name}", value)]
        standard = ("--name", "test", "--out", "report", "--anchors", "report/anchors.json")
        return script(copy, "report.py", *standard, *flags, *runs)

    return call


def add_samples(run, metrics=None):
    """Write samples.npz, the images of the made-up samples.png, and say in metrics.json that they are scored."""
    images = shapes.dataset(10, 16, split="test", limit=64)[0]
    run.mkdir(parents=True, exist_ok=True)
    save_npz(run / "samples.npz", images.permute(0, 2, 3, 1).numpy())
    metrics = json.loads((metrics or run / "metrics.json").read_text())
    metrics["samples"]["fingerprint"] = fingerprint(images)
    (run / "metrics.json").write_text(json.dumps(metrics))


def test_report_has_findings_tables_pictures_and_provenance(copy, report, no_pictures):
    done = report(*RUNS, budget="seconds=1200", data_note="These are test pictures.")
    assert done.returncode == 0, done.stderr
    text = (copy / "report/REPORT.md").read_text()
    words = ["These are test", "| real images (floor)", "Quality (random-", "budget: 20 min", "comparable within"]
    words += ["counts as two", "Timing protocol: median of", "`abc`"]
    assert [text.index(part) for part in words] == sorted(text.index(part) for part in words)
    assert "DCGAN" in done.stdout
    assert "REPORT.md" in done.stdout


def test_provenance_says_what_scored_the_models_where_it_is_not_what_scored_the_controls(copy, report, no_pictures):
    change(copy / "report/anchors.json", lambda a: a.update(versions={"torch": "1.0"}))
    for run, version in zip(RUNS[:2], ("1.0", "2.0"), strict=True):
        change(copy / run / "metrics.json", lambda m, version=version: m.update(versions={"torch": version}))
    for runs, controls in ((RUNS[:1], "Scored"), (RUNS[:2], "Controls scored")):
        assert report(*runs).returncode == 0
        text = (copy / "report/REPORT.md").read_text()
        assert f"- {controls} with torch 1.0" in text
        assert text.count("scored with torch 2.0") == len(runs) - 1


def test_neither_the_standard_score_nor_a_path_of_this_machine_is_named(copy, report, no_pictures):
    done = report(*(copy / run for run in RUNS))
    assert done.returncode == 0, done.stderr
    for text in (done.stdout, *((copy / "report" / name).read_text() for name in ("REPORT.md", "report.json"))):
        assert "FID" not in text
        assert str(copy) not in text


def test_report_from_committed_files_alone_shows_the_same_samples(copy, report):
    add_samples(copy / RUNS[0])
    report(RUNS[0])
    before = (copy / "report/samples.png").read_bytes()
    (copy / RUNS[0] / "samples.npz").unlink()
    report(RUNS[0])
    assert (copy / "report/samples.png").read_bytes() == before


def test_a_fourth_model_joins_by_its_files_and_missing_ones_show_as_dashes(copy, report, no_pictures):
    flow = copy / "runs/flow/one"
    add_samples(flow, copy / RUNS[0] / "metrics.json")
    assert report(*RUNS, flow).returncode == 0
    lines = (copy / "report/REPORT.md").read_text().splitlines()
    (summary, quality, cost) = (line for line in lines if line.startswith("| flow"))
    assert "-" not in summary.split("|")[2]
    assert "-" not in quality.split("|")[2]
    assert {part.strip() for part in cost.split("|")[2:-1]} == {"-"}
    (flow / "metrics.json").unlink()
    assert report(*RUNS, flow).returncode == 0
    assert "flow has no metrics.json" in (copy / "report/REPORT.md").read_text()


def refused(done, says):
    assert done.returncode == 2
    assert says in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    return done.stderr


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda m: m.update(n=50), "n 50, but 2000 in the controls"),
        (lambda m: m["reference"].update(fingerprint="0" * 16), "reference"),
        (lambda m: m["extractor"].update(fingerprint="0"), "extractor"),
        (lambda m: m.update(seed=3), "seed 3, but 0 in the controls"),
        (lambda m: m["samples"].update(fingerprint="0" * 16), "not the samples that"),
        (lambda m: m["samples"].update(file="samples_old.npz"), "scores samples_old.npz, not samples.npz"),
    ],
)
def test_metrics_that_do_not_belong_here_are_refused(copy, report, edit, says):
    add_samples(copy / RUNS[0])
    change(copy / RUNS[0] / "metrics.json", edit)
    assert "run evaluate.py again" in refused(report(*RUNS), says)
    assert not (copy / "report/REPORT.md").exists()


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("absent",), "absent: no such run folder"),
        (("data",), "not a run folder"),
        ((RUNS[0], "--budget", "hours=3"), "--budget hours=3"),
        ((RUNS[0], "--anchors", "none.json"), "--anchors none.json: no such file"),
        ((RUNS[0], RUNS[0]), "give each once"),
        (
            (RUNS[0], "--anchors", f"{RUNS[0]}/config.json"),
            "not what anchors.json holds: the file: 'anchors' is a required property",
        ),
        ((RUNS[0], "--anchors", "old.json"), "'verdict' is a required property; evaluate.py --anchors writes it"),
    ],
)
def test_wrong_arguments_are_one_sentence(copy, report, args, says):
    (copy / "data").mkdir()
    shutil.copy(copy / "report/anchors.json", copy / "old.json")
    change(copy / "old.json", lambda a: a["checks"][0].pop("verdict"))
    refused(report(*args), says)
