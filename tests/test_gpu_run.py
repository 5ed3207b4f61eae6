"""gpu_run.sh: work in a session of its own that is watched, interrupted and resumed; the jobs are stand-ins."""

import io
import os
import shutil
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
MODELS = ("gans", "denoising-diffusion-gan", "improved-diffusion")
COMPARE = """#!/usr/bin/env bash
echo "$*" >> calls
for model in gans denoising-diffusion-gan improved-diffusion; do
  run=results/runs/$model/mine
  mkdir -p "$run/settings/few" results/reports/mine
  "$PYTHON" -c "import numpy as np; np.savez('$run/samples.npz', arr_0=np.zeros((1200, 2, 2, 3), 'uint8'))"
  touch "$run/config.json" "$run/netG_1.pth" "$run/model.pt" "$run/settings/few/metrics.json"
done
echo report > results/reports/mine/REPORT.md
while [ -f hold ]; do sleep 0.1; done
[ ! -f fail ] || exit 3
"""
BENCHMARK = """import pathlib, sys
pathlib.Path(sys.argv[sys.argv.index("--out") + 1]).write_text("{}")
"""


PYTHON = """#!/usr/bin/env bash
[[ "$*" != *"import torch"* && "$*" != *"sys, torch"* ]] || exit 0  # is torch there, and which one
exec {} "$@"
"""


@pytest.fixture
def place(tmp_path):
    """A folder with gpu_run.sh and stand-ins for what it calls."""
    (tmp_path / "results").mkdir()
    shutil.copy2(ROOT / "results" / "gpu_run.sh", tmp_path / "results")
    (tmp_path / "results" / "compare.sh").write_text(COMPARE)
    (tmp_path / "results" / "benchmark.py").write_text(BENCHMARK)
    (tmp_path / "python").write_text(PYTHON.format(sys.executable))
    (tmp_path / "python").chmod(0o755)
    yield tmp_path
    (tmp_path / "hold").unlink(missing_ok=True)


def call(place, *options, cwd=None):
    script = place / "results" / "gpu_run.sh"
    return subprocess.run(
        ["bash", str(script), "--data", "shapes", "--name", "mine", "--device", "cpu", *options],
        cwd=cwd or place,
        env=os.environ | {"PYTHON": str(place / "python")},
        capture_output=True,
        text=True,
        timeout=120,
    )


def calls(place) -> list[str]:
    return (place / "calls").read_text().splitlines()


def packed(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as archive:
        return {m.name.removeprefix("./"): archive.extractfile(m).read() for m in archive if m.isfile()}


def test_run_that_failed_continues_ends_with_a_small_archive_and_is_done_once(place):
    options = ("--seconds", "7", "--gan_budget", "images=9", "--num_samples", "70", "--out", "small")
    (place / "fail").touch()
    failed = call(place, *options)
    assert failed.returncode == 3
    assert "the work ended with status 3" in failed.stderr
    (place / "fail").unlink()
    done = call(place, *options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "== benchmark: improved-diffusion" in done.stdout
    first, line = calls(place)
    assert line == first
    bounds = "gans:images=9,denoising-diffusion-gan:seconds=7,improved-diffusion:seconds=7"
    assert f"--budget {bounds}" in line
    assert "--preset gpu" in line
    assert "--gan r3gan-tiny" in line
    assert "--compile false" in line
    files = packed(place / "small" / "mine.tar.gz")
    for model in MODELS:
        run = f"results/runs/{model}/mine"
        names = {name.removeprefix(run + "/") for name in files if name.startswith(run)}
        assert names == {"config.json", "settings/few/metrics.json", "first_1000.npz"}
        assert np.load(io.BytesIO(files[f"{run}/first_1000.npz"]))["arr_0"].shape == (1000, 2, 2, 3)
        assert files[f"benchmark-{model}.json"] == b"{}"
    assert files["results/reports/mine/REPORT.md"] == b"report\n"
    assert b"== compare" in files["job.log"]
    again = call(place)
    assert again.returncode == 0
    assert "finished before" in again.stdout
    assert len(calls(place)) == 2


def test_call_that_may_not_last_leaves_the_work_going_on_and_killed_work_is_resumed(place):
    (place / "hold").touch()
    state = place / "results" / "runs" / "gpu_run" / "mine"
    for seconds in ("3", "2"):  # the second call watches the same work
        watched = call(place, "--wait", seconds, "--benchmark", "false")
        assert watched.returncode == 75, watched.stdout + watched.stderr
        assert "the same call watches it again" in watched.stderr
    assert len(calls(place)) == 1
    assert (state / "mine.tar.gz").is_file()
    os.killpg(int((state / "pid").read_text()), signal.SIGKILL)
    (place / "hold").unlink()
    done = call(place, "--wait", "60", "--benchmark", "false")
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(calls(place)) == 2
    assert "results/reports/mine/REPORT.md" in packed(state / "mine.tar.gz")


def test_archive_of_images_is_unpacked_once(place, tmp_path):
    with tarfile.open(tmp_path / "photos.tar.gz", "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("some/train/a.png"))
        archive.addfile(tarfile.TarInfo("some/test/b.png"))
    (tmp_path / "elsewhere").mkdir()
    options = ("--data", "../photos.tar.gz", "--benchmark", "false")
    done = call(place, *options, cwd=tmp_path / "elsewhere")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "--data data/photos/some/train " in calls(place)[0]
    assert (place / "data" / "photos" / "some" / "test" / "b.png").is_file()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--seconds many", "--seconds many: must be a whole number"),
        ("--gan_budget hours=1", "must be images=N or seconds=N"),
        ("--gan biggan", "must be dcgan, dcgan-plus or r3gan-tiny"),
        ("--benchmark maybe", "must be true or false"),
        ("--preset cpu", "must be gpu, or quick"),
        ("--data no/such/folder", "no such file or folder"),
        ("--name a/b", "letters, digits"),
        ("--wait", "a value is missing"),
        ("--frobnicate", "no such option"),
    ],
)
def test_bad_options_are_one_sentence(place, options, message):
    done = call(place, *options.split(" "))
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (place / "results" / "runs").exists()
