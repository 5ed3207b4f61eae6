"""A full disk, an absurd size, two samplers in one file: one sentence, and the last good files stay."""

import os
import resource
import signal
import subprocess
import sys
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from comparison import files
from comparison.checkpoints import load_checkpoint, save_checkpoint
from comparison.cli import UserError
from comparison.files import write_text
from comparison.png import write_pngs
from comparison.sampling.draw import draw_samples

FACTS = {"sampler": "made up", "seed": 0}


def draw(folder, count, wait=None):
    """Sample gray images of 8 pixels."""

    def images(indices):
        if wait:
            wait()
        return torch.zeros(len(indices), 3, 8, 8)

    more = {"image_size": 8, "device": torch.device("cpu"), "facts": FACTS}
    return draw_samples(images, [], num_samples=count, batch_size=4, out=folder / "samples.npz", **more)


@contextmanager
def largest_file(size):
    """Limit the size of files, as a full disk would."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_samples_that_cannot_fit_are_refused_before_the_first_one(tmp_path):
    with pytest.raises(
        UserError, match=r"samples\.npz: needs [\d,.]+ GiB on the disk, of which [\d,.]+ [GM]iB are free"
    ):
        draw(tmp_path, 10**12)
    assert list(tmp_path.iterdir()) == []


def test_checkpoint_that_does_not_fit_leaves_the_older_one(tmp_path, monkeypatch):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, {"step": 1}, model="gans")
    with largest_file(10_000), pytest.raises(UserError, match=r"checkpoint\.pt: could not be written"):
        save_checkpoint(path, {"step": 2, "weights": [torch.zeros(10_000)]}, model="gans")
    monkeypatch.setattr(files, "free_bytes", lambda path: 2**20)
    with pytest.raises(UserError, match=r"checkpoint\.pt: needs 3\.8 MiB on the disk, of which 1\.0 MiB are free"):
        save_checkpoint(path, {"step": 2, "ema": {"weights": torch.zeros(1_000_000)}}, model="gans")
    assert load_checkpoint(path, model="gans")["step"] == 1
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_text_that_does_not_fit_names_the_file_and_leaves_the_older_one(tmp_path):
    write_text(tmp_path / "a.json", "old")
    with largest_file(100), pytest.raises(UserError, match=r"a\.json: could not be written \(File too large; "):
        write_text(tmp_path / "a.json", "x" * 1000)
    assert (tmp_path / "a.json").read_text() == "old"


def test_pictures_that_do_not_fit_name_the_folder_and_leave_no_part(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    np.savez(tmp_path / "samples.npz", arr_0=pixels)
    with largest_file(500), pytest.raises(UserError, match=r"png: could not be written \(File too large; "):
        write_pngs(tmp_path / "samples.npz", tmp_path / "png", digits=2)
    assert list((tmp_path / "png").iterdir()) == []


def test_sampling_goes_on_after_a_full_disk(tmp_path):
    size = 8 * 8 * 3
    with largest_file(6 * size), pytest.raises(UserError, match=r"samples\.npz\.part: could not be written"):
        draw(tmp_path, 12)
    assert draw(tmp_path, 12).is_file()


def test_leftovers_of_killed_processes_go_and_those_of_running_ones_stay(tmp_path):
    draw(tmp_path, 4)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    mine = f".samples.{files.HOST}-{os.getppid()}.npz"
    names = ["samples.npz.part", "samples.npz.part.json", ".samples.npz.lock", f".samples.{files.HOST}-{ended.pid}.npz"]
    for name in (*names, mine, ".samples.elsewhere-1.npz", ".other"):
        (tmp_path / name).touch()
    draw(tmp_path, 4)
    assert {path.name for path in tmp_path.iterdir()} == {
        *("samples.npz", "samples.png", "sampling.json", ".samples.elsewhere-1.npz", ".other", mine)
    }


def test_second_sampler_of_a_file_is_refused_and_the_first_goes_on(tmp_path):
    code = "import sys; sys.path[:0] = sys.argv[1:3]; from pathlib import Path; import test_full_disk; "
    code += "test_full_disk.draw(Path(sys.argv[3]), 8)"

    def second():
        folders = [str(files.__file__).rpartition("/comparison/")[0], os.path.dirname(__file__), str(tmp_path)]
        done = subprocess.run([sys.executable, "-c", code, *folders], capture_output=True, text=True)
        assert "samples.npz: another process is sampling into this file; wait for it or stop it" in done.stderr

    assert draw(tmp_path, 4, second).is_file()
    assert not [file for file in tmp_path.iterdir() if file.name.endswith((".lock", ".part"))]
