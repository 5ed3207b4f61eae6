"""loss_graph.py: the curves come from progress.csv alone, of one run or several."""

import loss_graph
import numpy as np
import pytest
from comparison.cli import UserError
from ddgan import loss_plot
from matplotlib.figure import Figure
from PIL import Image

LOG_2 = np.log(2)


def write_run(folder, seed=0, rows=40, every=8):
    """Write a progress.csv as a training does, r1 in every second row only; return its losses."""
    folder.mkdir()
    rng = np.random.default_rng(seed)
    losses = rng.uniform(0.5, 1.5, (rows, 2)).round(4)
    lines = ["step,images_seen,wall_seconds,loss_d,loss_g,r1,lr"]
    for number, (loss_d, loss_g) in enumerate(losses, start=1):
        r1 = f"{number / 10}" if number % 2 else ""
        lines.append(f"{number},{every * number},{number}.5,{loss_d},{loss_g},{r1},0.0002")
    (folder / "progress.csv").write_text("\n".join(lines) + "\n")
    return losses


@pytest.fixture
def runs(tmp_path):
    """Three runs that differ in their seed."""
    for seed in range(3):
        write_run(tmp_path / f"s{seed}", seed)
    return [f"{tmp_path}/s{seed}" for seed in range(3)]


@pytest.fixture
def figures(monkeypatch):
    """Collect the figures that are drawn, without smoothing."""
    monkeypatch.setattr(loss_plot, "SMOOTH", 1)
    made = []
    init = Figure.__init__

    def remember(self, *args, **kwargs):
        made.append(self)
        init(self, *args, **kwargs)

    monkeypatch.setattr(Figure, "__init__", remember)
    return made


def call(*arguments):
    return loss_graph.main(loss_graph.parse_args([str(argument) for argument in arguments]))


@pytest.mark.figures
def test_curves_are_the_numbers_of_progress_csv_against_images_seen(tmp_path, figures):
    losses = write_run(tmp_path / "run")
    call(f"{tmp_path}/run", "--out", tmp_path / "loss.png")
    lines = figures[0].axes[0].get_lines()
    for column in (0, 1):
        raw, smooth, level = lines[3 * column : 3 * column + 3]
        for line in (raw, smooth):
            np.testing.assert_array_equal(line.get_xdata(), 8 * np.arange(1, 41))
            np.testing.assert_allclose(line.get_ydata(), losses[:, column])
        assert level.get_ydata()[0] == pytest.approx((2 - column) * LOG_2, abs=1e-3)
    assert Image.open(tmp_path / "loss.png").size[0] == 700


def test_each_further_column_gets_a_panel_with_the_rows_that_have_it(runs, figures, tmp_path):
    call(runs[0], "--also", "r1", "lr", "--out", tmp_path / "loss.png")
    panels = figures[0].axes
    assert [axes.get_ylabel() for axes in panels] == ["loss", "r1", "lr"]
    np.testing.assert_allclose(panels[1].get_lines()[0].get_xdata(), 8 * np.arange(1, 41, 2))


def test_mean_of_seeds_is_drawn_as_far_as_all_runs_reach(tmp_path, figures):
    losses = [write_run(tmp_path / f"s{seed}", seed, rows) for seed, rows in enumerate((40, 30))]
    call(f"{tmp_path}/s0", f"{tmp_path}/s1", "--mean", "--out", tmp_path / "loss.png")
    line = figures[0].axes[0].get_lines()[0]
    np.testing.assert_array_equal(line.get_xdata(), 8 * np.arange(1, 31))
    np.testing.assert_allclose(line.get_ydata(), (losses[0][:30, 0] + losses[1][:, 0]) / 2)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["{}/none"], "holds no progress.csv"),
        (["{}/empty"], "no row with losses yet"),
        (["{}/s0", "--also", "loss"], r"--also loss: not in .* which has .*lr, r1"),
        (["{}/s0", "--mean"], "--mean: needs several runs"),
        (["{}/s0", "--out", "{}"], "a folder, not a PNG file"),
    ],
)
def test_mistakes_are_one_sentence_and_draw_nothing(runs, tmp_path, arguments, sentence):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "progress.csv").write_text("step,images_seen,wall_seconds\n")
    with pytest.raises(UserError, match=sentence):
        call(*(argument.format(tmp_path) for argument in arguments))
    assert not list(tmp_path.glob("*.png"))


def test_values_that_no_axis_can_hold_are_left_out(tmp_path, figures):
    write_run(tmp_path / "s0", rows=4)
    with open(tmp_path / "s0" / "progress.csv", "a") as file:
        file.write("5,40,5.5,1e308,-1e308,,0.0002\n6,48,6.5,1,1,1e300,0.0002\n")
    call(tmp_path / "s0", "--also", "r1", "--out", tmp_path / "loss.png")
    assert (tmp_path / "loss.png").is_file()
