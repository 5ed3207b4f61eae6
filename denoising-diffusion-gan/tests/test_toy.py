"""The 25 Gaussians: what counts as a mode, the networks, and the script from flags to page."""

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import toy_gaussians
from ddgan import toy, toy_page
from ddgan.process import DenoisingProcess
from helpers_ddgan import FOLDER

pytestmark = pytest.mark.figures
TINY = ("--max_steps", 4, "--eval_every", 2, "--width", 8, "--batch_size", 16, "--num_samples", 1000, "--seeds", 2)


def call(folder: Path, *arguments: object) -> None:
    places = ("--out", folder / "out", "--runs_dir", folder / "runs")
    toy_gaussians.main(toy_gaussians.parse_args([str(argument) for argument in (*TINY, *places, *arguments)]))


def test_mixture_has_unit_variance_covers_its_own_modes_and_is_a_function_of_its_key():
    points = toy.draw_data(20000, 0, "test").flatten(1)
    assert points.mean(0).abs().max() < 0.03
    assert points.var(0).sub(1).abs().max() < 0.03
    found = toy.measure(points)
    assert found["modes"] == 25
    assert found["high_quality"] == pytest.approx(1 - math.exp(-4.5), abs=0.003)  # Rayleigh, three deviations
    assert 0 < found["kl"] < 24 / 20000 * 3  # its mean is 24 / 2N
    assert torch.equal(toy.draw_data(8, 1, "a"), toy.draw_data(8, 1, "a"))
    assert not torch.equal(toy.draw_data(8, 1, "a"), toy.draw_data(8, 2, "a"))


def test_collapse_and_noise_are_told_from_covering():
    one = toy.measure(toy.centers()[:1].repeat(1000, 1))
    assert (one["modes"], one["high_quality"]) == (1, 1.0)
    assert one["kl"] == pytest.approx(math.log(25))
    noise = toy.measure(torch.randn(10000, 2))
    assert noise["modes"] < 5
    assert noise["high_quality"] < 0.2
    away = toy.measure(torch.full((1000, 2), 9.0))
    assert away == {"modes": 0, "high_quality": 0.0, "kl": None}
    assert toy.measure(torch.full((1000, 2), math.nan))["modes"] == 0


@pytest.mark.parametrize(("few", "modes"), [(11, 23), (12, 25)])  # a quarter of an equal share is 11.7
def test_mode_with_less_than_a_quarter_of_its_share_does_not_count(few, modes):
    counts = [50] * 23 + [few, few]
    points = torch.cat([center.repeat(n, 1) for center, n in zip(toy.centers(), counts, strict=True)])
    assert toy.measure(points)["modes"] == modes


def test_sample_beyond_three_deviations_is_not_of_high_quality():
    shift = torch.tensor([1.0, 0.0])
    for deviations, share in ((2.99, 1.0), (3.01, 0.0)):
        assert toy.measure(toy.centers() + deviations * toy.STD * shift)["high_quality"] == share


def test_networks_know_time_latent_and_both_points():
    torch.manual_seed(0)
    generator, discriminator = toy.ToyGenerator(3, 4, 16), toy.ToyDiscriminator(3, 16)
    x, other, z, t = torch.randn(5, 2, 1, 1), torch.randn(5, 2, 1, 1), torch.randn(5, 4), torch.zeros(5).long()
    made, logits = generator(x, t, z), discriminator(x, t, other)
    assert made.shape == (5, 2, 1, 1)
    assert logits.shape == (5, 1)
    for changed in (generator(other, t, z), generator(x, t + 2, z), generator(x, t, -z)):
        assert not torch.allclose(made, changed)
    for changed in (discriminator(other, t, other), discriminator(x, t + 2, other), discriminator(x, t, x)):
        assert not torch.allclose(logits, changed)


def test_perfect_generator_of_one_step_gives_back_the_mixture():
    data = toy.draw_data(2000, 0, "perfect")

    class Perfect(toy.ToyGenerator):
        def forward(self, x_t_plus_1, t, z):
            return data[: len(x_t_plus_1)]

    points = toy.sample_points(Perfect(4, 4, 8), DenoisingProcess(4), 2000, 0)
    assert torch.equal(points, data.flatten(1))  # the last step returns the prediction itself


def test_training_is_a_function_of_its_seed():
    settings = toy.ToySettings(3, 16, 1e-3, 1e-3, 0.1, 2, 0.9, 8, 4, 0.1, 0.9, True, 2)
    device = torch.device("cpu")
    (first, _, history), (same, *_), (other, *_) = (toy.train(2, seed, settings, device) for seed in (0, 0, 1))
    states = [torch.cat([value.flatten() for value in net.state_dict().values()]) for net in (first, same, other)]
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])
    assert [row["step"] for row in history] == [2, 3]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The study of two T and two seeds, tiny."""
    folder = tmp_path_factory.mktemp("toy")
    call(folder, "--num_timesteps", 2, 1)
    return folder


def test_study_has_a_training_per_t_and_seed_and_a_page_with_pictures(finished):
    study = json.loads((finished / "out" / "study.json").read_text())
    assert [(cell["timesteps"], cell["seed"]) for cell in study["cells"]] == [(1, 0), (1, 1), (2, 0), (2, 1)]
    assert study["real"]["end"]["modes"] == 25
    page = (finished / "out" / "README.md").read_text()
    assert re.search(r"^\| the mixture itself \| - \| 25 \| - \|", page, re.MULTILINE)
    assert re.search(r"^\| DDGAN, T = 2 \| 2 \| \d+, \d+ \| -, - \|", page, re.MULTILINE)
    assert f"all {toy.MODES}. `high quality`: samples within {toy.NEAR:g} standard" in page
    for name in re.findall(r"\]\((\w+\.png)\)", page):
        assert (finished / "out" / name).stat().st_size > 5000
    assert str(finished) not in page + json.dumps(study)


def test_second_call_trains_nothing_and_other_settings_do(finished, monkeypatch):
    trained = []

    def stop(timesteps, seed, *_):
        trained.append((timesteps, seed))
        raise KeyboardInterrupt

    monkeypatch.setattr(toy, "train", stop)
    before = (finished / "out" / "README.md").read_bytes()
    call(finished, "--num_timesteps", 1, 2)
    assert (finished / "out" / "README.md").read_bytes() == before
    assert trained == []
    with pytest.raises(KeyboardInterrupt):
        call(finished, "--num_timesteps", 1, "--lr_g", "0.01")
    assert trained == [(1, 0)]


def test_page_is_made_from_study_json_alone(finished, tmp_path):
    made = {path.name: path.read_bytes() for path in (finished / "out").iterdir()}
    (tmp_path / "study.json").write_bytes(made["study.json"])
    code = "import runpy, sys; sys.modules['torch'] = None; sys.path.insert(0, sys.argv[1]); "
    code += "sys.argv = ['toy_gaussians.py', '--page', '--out', sys.argv[2]]; "
    code += f"runpy.run_path({str(FOLDER / 'toy_gaussians.py')!r}, run_name='__main__')"
    command = [sys.executable, "-c", code, str(FOLDER), str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == made


def test_table_says_from_when_on_all_modes_are_covered_and_pools_the_seeds():
    def cell(modes, quality):
        history = [{"step": step, "modes": count} for step, count in zip((100, 200, 300), modes, strict=True)]
        return {"end": {"high_quality": quality, "kl": None}, "history": history}

    assert toy_page.first_step_with_all_modes(cell((24, 25, 25), 0.9)) == "200"
    assert toy_page.first_step_with_all_modes(cell((25, 25, 24), 0.9)) == "-"
    cells = [cell((25, 25, 25), quality) for quality in (0.90, 0.91)]
    assert toy_page.pooled(cells, "high_quality", 100) == "90 ± 6"
    assert toy_page.pooled(cells, "kl") == "-"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num_timesteps", "0"], "--num_timesteps"),
        (["--num_samples", "10"], "--num_samples: must be at least 1000"),
        (["--ema_decay", "1"], "--ema_decay"),
        (["--beta_max", "1.5"], "--beta_max 1.5: beta_min < beta_max < 1 must hold"),
        (["--page", "--out", "{}/none"], "study.json"),
        (["--out", "{}/file"], "--out"),
    ],
)
def test_mistakes_are_one_sentence_before_torch_is_imported(tmp_path, arguments, message):
    (tmp_path / "file").touch()
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was imported')")
    words = [argument.format(tmp_path) for argument in arguments]
    command = [sys.executable, str(FOLDER / "toy_gaussians.py"), *words]
    result = subprocess.run(command, capture_output=True, text=True, env={"PYTHONPATH": str(tmp_path)})
    assert result.returncode == 2, result.stderr
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
