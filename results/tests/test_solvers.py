"""The study of solvers: which sets it samples, what it says of them, what it refuses."""

import json
import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from comparison import jobs
from comparison.data import shapes
from comparison.files import write_json


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Return an .npz file of images of shapes."""
    path = tmp_path_factory.mktemp("data") / "shapes10.npz"
    np.savez(path, arr_0=shapes.dataset(10, 32, limit=512)[0].permute(0, 2, 3, 1).numpy())
    return path


@pytest.fixture
def trained(pictures, tmp_path):
    """Return a run folder as a training leaves it."""
    data = {"name": "shapes10", "images": 512, "image_size": 32, "fingerprint": "0"}
    options = {"num_channels": 32, "num_res_blocks": 1, "data_dir": str(pictures)}
    done = {"reason": "max_steps 9", "steps": 9, "images_seen": 900, "wall_seconds": 1.0}
    folder = tmp_path / "mine"
    folder.mkdir()
    write_json(
        folder / "config.json", {"model": "improved-diffusion", "options": options, "data": data, "finished": done}
    )
    (folder / "ema_0.9_000009.pt").write_bytes(b"")
    return folder


class FakeSampler:
    """Stands in for image_sample.py: real images, worse the fewer evaluations and without DPM-Solver++."""

    def __init__(self, source: Path) -> None:
        self.images, self.commands = np.load(source)["arr_0"], []

    def __call__(self, command, console):
        folder, value = console.parent, dict(pairwise(command))
        if (folder / "sampling.json").is_file():
            return
        self.commands.append(command)
        steps, count = int(value["--num_sampling_steps"]), int(value["--num_samples"])
        noise = np.random.default_rng(0).normal(size=self.images[:count].shape)
        grain = {"dpmpp": 20, "unipc": 21}.get(value["--sampler"], 20 if steps == 250 else 60)
        folder.mkdir(parents=True, exist_ok=True)
        images = (self.images[:count] + grain * noise).clip(0, 255).astype(np.uint8)
        np.savez(folder / f"samples_{count}x32x32x3.npz", arr_0=images)
        facts = {"nfe": float(steps), "seconds_per_image": 0.001 * steps, "sampler": "made up", "batch_size": 100}
        write_json(folder / "sampling.json", {**facts, "device": "a CPU", "checkpoint": "ema_0.9_000009.pt"})


@pytest.fixture
def study(script, pictures, trained, monkeypatch):
    """Return a function that runs the study with further flags, and the commands that it gave."""
    fake = FakeSampler(pictures)
    monkeypatch.setattr(jobs, "run", fake)

    def run(*flags):
        folders = ("--out", trained.parent / "out", "--runs_dir", trained.parent / "runs")
        common = ("--run", trained, "--data", pictures, "--num_samples", 128, *folders)
        return script(trained.parent, "studies/solvers.py", *common, *flags), fake.commands

    return run


@pytest.mark.figures
def test_solvers_are_compared_with_the_ancestral_steps_of_the_same_noise(study, trained):
    result, commands = study("--cells", "dpmpp-20,unipc-20,ancestral-uniform-20")
    assert result.returncode == 0, result.stderr
    first, *rest = commands
    assert "--sampler ancestral" in " ".join(first)
    assert "--num_sampling_steps 250" in " ".join(first)
    assert rest
    assert all("--num_sampling_steps 20" in " ".join(command) for command in rest)
    assert {dict(pairwise(command))["--seed"] for command in commands} == {"0"}
    written = json.loads((trained.parent / "out" / "study.json").read_text())
    ratios = {cell["name"]: cell["ratio"] for cell in written["cells"][1:]}
    assert ratios["dpmpp-20"]["interval"] == [1, 1]
    assert ratios["unipc-20"]["value"] > 1
    assert ratios["ancestral-uniform-20"]["interval"][0] > 2
    page = (trained.parent / "out" / "README.md").read_text()
    assert re.search(r"\| DPM-Solver\+\+ 2M \| 20 \| .* \| 1\.000 \(1\.000 to 1\.000\) \| as good \|", page)
    assert re.search(r"\| ancestral, uniform \| 20 \| .* \| worse \|", page)
    assert (trained.parent / "out" / "solvers.png").stat().st_size > 5000
    assert str(trained) not in page + json.dumps(written)


def test_second_call_samples_nothing_anew(study):
    _, commands = study("--cells", "dpmpp-20")
    assert len(commands) == 2  # and the baseline
    result, commands = study("--cells", "dpmpp-20")
    assert result.returncode == 0
    assert len(commands) == 2


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--evaluations", 250), "--evaluations 250: must be fewer than --baseline 250"),
        (("--cells", "euler"), "--cells euler: must be among"),
        (("--run", "absent"), "absent"),
        (("--data", "shapes"), "trained on shapes10, but --data is shapes"),
    ],
)
def test_wrong_options_are_refused_in_one_sentence(study, flags, words):
    result, commands = study(*flags)
    assert (result.returncode, commands) == (2, [])
    assert words in result.stderr
    assert result.stderr.count("\n") == 1


def test_plan_lists_the_sets_and_samples_nothing(study):
    result, commands = study("--plan")
    assert commands == []
    assert "ancestral-uniform-250" in result.stdout
    assert "minutes" in result.stdout
