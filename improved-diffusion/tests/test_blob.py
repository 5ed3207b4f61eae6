"""Local and remote files by path; a folder stands in for cloud storage."""

import json
import os
import sys

import pytest
from comparison.cli import UserError
from diffusion_testing import call_script
from improved_diffusion import blob
from model_options import download_model
from PIL import Image

TINY = (
    "--image_size 16 --num_channels 16 --norm_groups 8 --num_res_blocks 1 --diffusion_steps 4 --noise_schedule cosine"
)
RUN = f"{TINY} --batch_size 4 --log_interval 1 --grid_images 0 --device cpu --precision float32 --threads 1"


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """Let blobfile's functions take gs://bucket/x for <tmp_path>/cloud/bucket/x, and return that folder."""
    from cloud_stand_in import install

    (tmp_path / "cloud" / "bucket").mkdir(parents=True)
    install(tmp_path / "cloud", monkeypatch.setattr)
    return tmp_path / "cloud" / "bucket"


@pytest.mark.parametrize("remote", [False, True])
def test_interrupted_write_leaves_the_former_file(remote, bucket, tmp_path):
    path = "gs://bucket/model.pt" if remote else str(tmp_path / "model.pt")
    with blob.open_file(path, "wb") as file:
        file.write(b"former")

    def interrupted():
        with blob.open_file(path, "wb") as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    with blob.open_file(path, "rb") as file:
        assert file.read() == b"former"
    assert not [name for name in os.listdir(bucket if remote else tmp_path) if name.startswith(".")]


def test_without_blobfile_a_remote_path_says_what_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "blobfile", None)
    blob._blobfile.cache_clear()
    with pytest.raises(ImportError, match=r"a remote path needs the package blobfile \(pip install blobfile\)"):
        blob.backend("gs://bucket/a")


def test_remote_model_that_changed_is_copied_again_and_its_lost_records_go(bucket, tmp_path, monkeypatch):
    monkeypatch.setenv("DATA_ROOT", str(tmp_path / "data"))
    (bucket / "model000001.pt").write_bytes(b"first")
    (bucket / "config.json").write_text("{}")
    path = download_model("--model_path", "gs://bucket/model000001.pt")
    assert path.read_bytes() == b"first"
    assert path.with_name("config.json").is_file()
    (bucket / "model000001.pt").write_bytes(b"second")
    (bucket / "config.json").unlink()
    assert download_model("--model_path", "gs://bucket/model000001.pt").read_bytes() == b"second"
    assert not path.with_name("config.json").exists()
    with pytest.raises(UserError, match=r"--model_path gs://bucket/none\.pt: "):
        download_model("--model_path", "gs://bucket/none.pt")


def test_scripts_copy_remote_data_and_checkpoints_once(bucket, tmp_path, monkeypatch):
    monkeypatch.setenv("DATA_ROOT", str(tmp_path / "data"))
    (bucket / "set").mkdir()
    for i in range(4):
        Image.new("RGB", (16, 16), (60 * i, 0, 0)).save(bucket / "set" / f"{i}.png")
    train = [RUN, "--data_dir gs://bucket/set --ema_rate 0.9,0.99"]
    assert call_script("scripts/image_train.py", *train, "--run_dir", bucket / "run", "--max_steps 2") == 0
    assert json.loads((bucket / "run" / "config.json").read_text())["options"]["data_dir"] == "gs://bucket/set"
    start = "--resume_checkpoint gs://bucket/run/model000002.pt --max_steps 3"
    assert call_script("scripts/image_train.py", *train, "--run_dir", tmp_path / "on", start) == 0
    assert "not beside" not in (tmp_path / "on" / "log.txt").read_text()
    sample = "--model_path gs://bucket/run/ema_0.9_000002.pt --num_samples 2 --device cpu --threads 1"
    assert call_script("scripts/image_sample.py", sample, "--out_dir", tmp_path / "out") == 0
    assert (tmp_path / "out" / "samples_2x16x16x3.npz").is_file()
    calls = (tmp_path / "cloud" / "calls.txt").read_text().splitlines()
    copied = [line.split()[1] for line in calls if line.startswith("copy")]
    assert (
        len(copied) == len(set(copied)) == 4 + 4 + 2
    )  # images; model, EMA twice, optimizer; config.json, progress.csv
