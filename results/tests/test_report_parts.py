"""Rows, tables, pictures and pages of a report, on made-up runs with settings, history and timing."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from comparison.cli import UserError
from comparison.report import page as report
from comparison.report import published
from comparison.report import tables as sections
from comparison.report.rows import read_rows, read_strips

MODELS = ("gans", "improved-diffusion", "denoising-diffusion-gan")


def runs_of(place):
    return [place / "runs" / model / "made" for model in MODELS]


def change(path, edit):
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


@pytest.fixture
def place(made, tmp_path):
    shutil.copytree(made, tmp_path / "made")
    return tmp_path / "made"


@pytest.fixture
def rows(made):
    return read_rows(runs_of(made), report.load_anchors(made / "report" / "anchors.json"))


@pytest.fixture(scope="module")
def written(made, tmp_path_factory):
    out = tmp_path_factory.mktemp("written")
    report.make_report("made", runs_of(made), made / "report" / "anchors.json", out, "seconds=1200", None)
    return out


@pytest.fixture
def no_pictures(monkeypatch):
    monkeypatch.setattr(report, "_draw", lambda *_: [])


def cell(table, label, column):
    header, lines = table
    return next(line for line in lines if line[0] == label)[header.index(column)]


def test_each_sampler_setting_is_a_row_with_the_facts_of_its_training(rows):
    labels = [row["label"] for row in rows]
    assert labels[1:5] == ["improved DDPM", *(f"improved DDPM, ddim{n}" for n in (5, 10, 50))]
    main, setting = rows[1], rows[2]
    assert (setting["nfe"], setting["training_seconds"]) == (5.0, main["training_seconds"])
    assert [point["name"] for point in main["history"]] == ["25", "50", "75"]
    assert setting["history"] == []


@pytest.mark.parametrize("part", ["settings/ddim5", "history/25"])
def test_scores_of_a_setting_or_checkpoint_that_do_not_belong_here_are_refused(place, part):
    change(place / "runs/improved-diffusion/made" / part / "metrics.json", lambda m: m.update(seed=3))
    with pytest.raises(UserError, match="seed 3 there, 0 in the controls"):
        read_rows(runs_of(place), report.load_anchors(place / "report" / "anchors.json"))


def test_controls_of_an_older_evaluation_are_refused(place):
    change(place / "report" / "anchors.json", lambda a: a["checks"][0].pop("verdict"))
    with pytest.raises(UserError, match="run it again"):
        report.load_anchors(place / "report" / "anchors.json")


def test_cost_comes_from_the_benchmark_and_says_what_is_extrapolated(rows):
    table = sections.cost_table(rows)
    assert cell(table, "improved DDPM", "latency, 1 image") == "232 ms"
    assert cell(table, "improved DDPM", "throughput") == "17.2/s, batch 128"
    assert cell(table, "improved DDPM", "50,000 images") == "~ 48.3 min"
    assert cell(table, "improved DDPM, ddim5", "GFLOP per image") == "1.55"
    assert "extrapolated" in sections.cost_notes(rows)


def test_fifty_thousand_images_that_were_drawn_are_measured(place):
    sampling = place / "runs/gans/made/sampling.json"
    change(sampling, lambda s: s.update(images=50_000, seconds=12.0))
    (row,) = read_rows(runs_of(place)[:1], report.load_anchors(place / "report" / "anchors.json"))
    assert cell(sections.cost_table([row]), "DCGAN", "50,000 images") == "12 s"
    assert "extrapolated" not in sections.cost_notes([row])


def test_without_a_benchmark_the_rate_of_drawing_is_shown_and_marked(place):
    (place / "runs/gans/made/timing.json").unlink()
    (row,) = read_rows(runs_of(place)[:1], report.load_anchors(place / "report" / "anchors.json"))
    assert cell(sections.cost_table([row]), "DCGAN", "throughput").endswith("/s, batch 100 *")
    assert cell(sections.cost_table([row]), "DCGAN", "latency, 1 image") == "-"
    assert "no benchmark was run" in sections.cost_notes([row])


def test_a_benchmark_of_another_sampler_is_named(place, no_pictures):
    change(place / "runs/gans/made/timing.json", lambda t: t.update(sampler="another"))
    made = report.make_report("x", runs_of(place), place / "report/anchors.json", place / "out", None, None)
    assert "DCGAN was timed with another sampler than its samples were drawn with." in made.faults


def test_timing_protocol_stands_above_the_cost_table(written):
    text = (written / "REPORT.md").read_text()
    assert (
        text.index("Timing protocol: median of") < text.index("| GFLOP per evaluation |") < text.index("counted as two")
    )


def test_memorised_samples_are_flagged_and_only_they(rows, made):
    controls = report.load_anchors(made / "report" / "anchors.json")["anchors"]
    rows[0]["metrics"]["memorised"] = {"value": 0.2, "interval": [0.18, 0.22], "n": 2000}
    table = sections.quality_table(controls, rows)
    assert cell(table, "DCGAN", "memorised") == "20.0% flag"
    assert [line[0] for line in table[1] if "flag" in line[-1]] == ["copied training images", "DCGAN"]


def test_cells_that_contradict_expectation_are_marked_and_explained(made):
    anchors = report.load_anchors(made / "report" / "anchors.json")
    table = sections.corruption_table(anchors["checks"], anchors["anchors"])
    assert cell(table, "kernel x1000", "JPEG, quality 10") == "**unchanged (!)**"
    assert cell(table, "coverage", "half of the modes") == "worse"
    assert cell(table, "coverage", "copied training images") == "better"  # any verdict would do
    notes = sections.corruption_notes(anchors["checks"], anchors["anchors"])
    assert "4 of 5 expectations hold" in notes
    assert "Kernel x1000 cannot tell 'JPEG, quality 10' from 'real images (floor)'" in notes


def test_standard_metrics_have_a_table_of_their_own(place, no_pictures):
    weights, entry = {"file": "inception.pth", "sha256": "6726825d" + 56 * "0"}, {"value": 41.2, "n": 2000}
    for model, value in zip(MODELS, (41.2, 50.0, 60.0), strict=True):
        standard = {
            "weights": weights,
            "n": 2000,
            "reference": {"kind": "images", "n": 2000, "fingerprint": "ab"},
            "metrics": {},
        }
        standard["metrics"] = {"fid": {**entry, "value": value}, "inception_recall": {"value": 0.3, "n": 1000}}
        change(place / f"runs/{model}/made/metrics.json", lambda m, s=standard: m.update(standard=s))
    report.make_report("x", runs_of(place), place / "report/anchors.json", place / "out", None, None)
    text = (place / "out" / "REPORT.md").read_text()
    assert "| DCGAN | 2,000 | 41.2 | 0.3 |" in text
    assert "recall on 1,000 images." in text
    assert "against the reference's images (2,000)" in text
    change(place / "runs/gans/made/metrics.json", lambda m: m["standard"]["weights"].update(sha256="1"))
    with pytest.raises(UserError, match="have other weights"):
        report.make_report("x", runs_of(place), place / "report/anchors.json", place / "out", None, None)


@pytest.mark.parametrize(("name", "expected"), [("cifar10-jpeg-train", True), ("CIFAR-10", True), ("shapes", False)])
def test_published_figures_stand_beside_cifar10_only(name, expected):
    assert published.matches(name) is expected


def test_published_figures_are_marked_as_not_comparable(written):
    text = (written / "REPORT.md").read_text()
    assert text.index("not measured here, not comparable") < text.index("| DDPM | 3.17 | 9.46 |")
    for row in published.PUBLISHED:
        assert row.source[-4:].isdigit()
    assert "332.65 s" in text


def test_all_pictures_are_drawn_and_small(written):
    names = json.loads((written / "report.json").read_text())["pictures"]
    assert names == list(report.PICTURES)
    for name in names:
        assert (written / name).stat().st_size < 300_000


def test_pictures_that_the_files_do_not_suffice_for_are_left_out(place):
    for run in runs_of(place):
        shutil.rmtree(run / "history")
        (run / "interpolation.png").unlink()
    out = place / "report"
    (out / "training.png").write_bytes(b"of an older report")
    report.make_report("x", runs_of(place), out / "anchors.json", out, None, None)
    assert not (out / "training.png").exists()
    assert "interpolation.png" not in (out / "REPORT.md").read_text()


def test_words_beside_points_cover_neither_each_other_nor_the_points(tmp_path):
    from comparison.report.plots import Labels
    from matplotlib.figure import Figure

    axes = Figure(figsize=(4, 3), layout="constrained").add_subplot()
    points = [(0.5, 0.5), (0.52, 0.5), (0.5, 0.54), (0.97, 0.97)]
    axes.set(xlim=(0, 1), ylim=(0, 1))
    labels = Labels(axes, points)
    for point in points:
        labels.place("a label", point, "black")
    boxes = [text.get_window_extent() for text in axes.texts]
    inside = axes.get_window_extent()
    assert len(boxes) == 4
    for i, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:i])
        assert inside.x0 <= box.x0
        assert box.x1 <= inside.x1
        assert not any(box.contains(*axes.transData.transform(point)) for point in points)


def test_strips_are_cut_into_rows(made):
    strips = read_strips(made / "runs/gans/made/neighbours.png", 2, 12)
    assert [strip.shape for strip in strips] == [(12, 16, 16, 3)] * 2
    assert not np.array_equal(*strips)
    assert read_strips(made / "runs/gans/made/neighbours.png", 3, 12) == []
    assert read_strips(made / "absent.png", 2, 12) == []


def check(value, schema, root, where="report"):
    """Check a value against the parts of JSON Schema that report.schema.json uses."""
    if "$ref" in schema:
        schema = root["$defs"][schema["$ref"].rpartition("/")[2]]
    kinds = {"string": str, "integer": int, "number": (int, float), "boolean": bool, "object": dict, "array": list}
    allowed = schema.get("type", [])
    allowed = [allowed] if isinstance(allowed, str) else allowed
    fits = [value is None if kind == "null" else isinstance(value, kinds[kind]) for kind in allowed]
    assert not allowed or any(fits), f"{where}: {value!r} is not {allowed}"
    assert "const" not in schema or value == schema["const"], where
    assert "enum" not in schema or value in schema["enum"], where
    if isinstance(value, dict):
        known, others = schema.get("properties", {}), schema.get("additionalProperties", True)
        assert set(schema.get("required", ())) <= set(value), f"{where}: lacks {set(schema['required']) - set(value)}"
        for name, part in value.items():
            assert name in known or others is not False, f"{where}: {name} is not documented"
            check(part, known.get(name, others if isinstance(others, dict) else {}), root, f"{where}.{name}")
    if isinstance(value, list):
        for part in value:
            check(part, schema.get("items", {}), root, f"{where}[]")


def test_report_json_keeps_to_its_schema(written):
    schema = json.loads((Path(report.__file__).parent / "report.schema.json").read_text())
    content = json.loads((written / "report.json").read_text())
    check(content, schema, schema)
    with pytest.raises(AssertionError, match="lacks"):
        check({}, schema, schema)
    content["models"][0]["nfe"] = "four"
    with pytest.raises(AssertionError, match="nfe"):
        check(content, schema, schema)


def test_page_holds_tables_and_pictures_and_needs_no_other_file(written):
    pytest.importorskip("markdown")
    page = (written / "REPORT.html").read_text()
    assert page.count("data:image/png;base64,") == len(report.PICTURES)
    assert "<td" in page
    assert 'src="samples.png"' not in page
    assert "http" not in page.split("<body>")[0]


def test_without_the_package_markdown_a_sentence_says_so(place, no_pictures, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "markdown", None)
    out = place / "report"
    (out / "REPORT.html").write_text("of an older report")
    report.make_report("x", runs_of(place), out / "anchors.json", out, None, None)
    assert not (out / "REPORT.html").exists()
    assert capsys.readouterr().out.startswith("No REPORT.html: it needs the package markdown")


def test_the_same_files_give_the_same_bytes(written, made, tmp_path):
    report.make_report("made", runs_of(made), made / "report" / "anchors.json", tmp_path, "seconds=1200", None)
    there = {path.name: path.read_bytes() for path in written.iterdir()}
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == there


def test_features_of_the_classifier_name_the_distance_and_its_accuracy(rows, made):
    extractor = {"key": "cifar", "accuracy": 0.8891}
    controls = report.load_anchors(made / "report" / "anchors.json")["anchors"]
    notes = sections.quality_notes(controls, rows, extractor)
    assert "classifier-feature Frechet distance" in notes
    assert "names 88.9% of its test images rightly" in notes
    assert "random" not in notes


def test_metrics_on_fewer_images_are_named(made):
    anchors = report.load_anchors(made / "report" / "anchors.json")
    assert sections.numbers_sentence(anchors) == "2,000 images per row. Controls first."
    anchors["anchors"]["floor"]["metrics"]["recall"]["n"] = 1500
    assert sections.numbers_sentence(anchors) == "2,000 images per row, 1,500 of them for recall. Controls first."
