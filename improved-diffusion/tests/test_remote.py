"""The scripts with gs:// paths, which a stand-in for cloud storage keeps in a folder; and TensorBoard's files."""

import json
import shutil
import subprocess

import numpy as np
import pytest
from cloud_stand_in import install, install_for_scripts
from comparison.cli import UserError
from diffusion_testing import call_script, run_script
from PIL import Image

TRAIN = (
    "--image_size 16 --num_channels 32 --num_res_blocks 1 --norm_groups 8 --diffusion_steps 8 "
    "--noise_schedule cosine --batch_size 4 --log_interval 1 --ema_rate 0.9 --grid_images 0 --seed 3 "
    "--data_dir gs://bucket/set"
)


@pytest.fixture
def cloud(tmp_path, monkeypatch):
    """A bucket with 8 images in gs://bucket/set, in the place of blobfile's; return its folder."""
    folder = tmp_path / "cloud" / "bucket"
    (folder / "set").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(8):
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(folder / "set" / f"{i}.png")
    monkeypatch.delenv("OPENAI_LOGDIR", raising=False)
    monkeypatch.delenv("OPENAI_LOG_FORMAT", raising=False)
    monkeypatch.setenv("DATA_ROOT", str(tmp_path / "data"))
    install(tmp_path / "cloud", monkeypatch.setattr)
    return folder


def transfers(cloud, function="copy"):
    """Return what was copied since the last call, as `source target` without folders."""
    path = cloud.parent / "calls.txt"
    lines = path.read_text().splitlines() if path.exists() else []
    path.unlink(missing_ok=True)
    return [line.partition(" ")[2] for line in lines if line.startswith(function + " ")]


def test_run_in_the_cloud_is_continued_on_another_machine(cloud, tmp_path, monkeypatch, capsys):
    call_script("scripts/image_train.py", TRAIN, "--run_dir gs://bucket/runs/a --max_steps 2 --save_interval 2")
    run = cloud / "runs" / "a"
    names = {path.name for path in run.iterdir()}
    assert {"config.json", "log.txt", "progress.csv", "progress.json", "loss.png"} <= names
    assert {"model000002.pt", "ema_0.9_000002.pt", "opt000002.pt"} <= names
    assert not [name for name in names if name.startswith(".")]
    assert "gs://bucket/set: 8 files downloaded to" in capsys.readouterr().out
    assert json.loads((run / "config.json").read_text())["options"]["data_dir"] == "gs://bucket/set"

    monkeypatch.setenv("DATA_ROOT", str(tmp_path / "other"))
    more = "--run_dir gs://bucket/runs/a --max_steps 3 --save_interval 2 --keep 1"
    call_script("scripts/image_train.py", TRAIN, more)
    assert "continues after 2 updates" in capsys.readouterr().out
    assert "continues after 2 updates" in (run / "log.txt").read_text()
    assert sorted(path.name for path in run.glob("opt*.pt")) == ["opt000002.pt", "opt000003.pt"]

    monkeypatch.setenv("DATA_ROOT", str(tmp_path / "data"))  # left behind by now
    call_script("scripts/image_train.py", TRAIN, "--run_dir gs://bucket/runs/a --max_steps 3 --save_interval 2")
    assert "finished (max_steps 3)" in capsys.readouterr().out


def test_checkpoint_in_the_cloud_is_whole_before_it_counts(cloud):
    transfers(cloud)
    call_script("scripts/image_train.py", TRAIN, "--run_dir gs://bucket/runs/a --max_steps 2 --save_interval 1")
    sent = [line.split("/")[-1] for line in transfers(cloud) if line.split()[1].startswith("gs://")]
    for step in ("000001", "000002"):
        assert sent.index(f"opt{step}.pt") > sent.index(f"model{step}.pt")
        assert sent.index(f"opt{step}.pt") > sent.index(f"ema_0.9_{step}.pt")
    assert sent.count("model000001.pt") == 1


def test_images_are_downloaded_once_and_follow_the_cloud(cloud, tmp_path):
    for steps in (1, 2):
        call_script("scripts/image_train.py", TRAIN, "--run_dir", tmp_path / "run", f"--max_steps {steps}")
        fetched = [line for line in transfers(cloud) if line.startswith("gs://bucket/set")]
        assert len(fetched) == (8 if steps == 1 else 0)
    (cloud / "set" / "0.png").unlink()
    with pytest.raises(UserError, match="trained on other images"):
        call_script("scripts/image_train.py", TRAIN, "--run_dir", tmp_path / "run", "--max_steps 3")


def test_model_in_the_cloud_is_sampled_and_the_images_are_sent_beside_it(cloud, tmp_path, capsys):
    call_script("scripts/image_train.py", TRAIN, "--run_dir", tmp_path / "run", "--max_steps 1")
    shutil.copytree(tmp_path / "run", cloud / "runs" / "b")
    transfers(cloud)
    sample = "--model_path gs://bucket/runs/b/ema_0.9_000001.pt --num_samples 2 --batch_size 2"
    call_script("scripts/image_sample.py", sample)
    fetched = [line.split()[0] for line in transfers(cloud) if line.startswith("gs://")]
    assert sorted(path.split("/")[-1] for path in fetched) == ["config.json", "ema_0.9_000001.pt", "progress.csv"]
    assert np.load(cloud / "runs" / "b" / "samples_2x16x16x3.npz")["arr_0"].shape == (2, 16, 16, 3)
    call_script("scripts/image_sample.py", sample, "--out_dir gs://bucket/images")
    assert (cloud / "images" / "samples_2x16x16x3.npz").is_file()
    assert not [line for line in transfers(cloud) if line.startswith("gs://")]


def test_checkpoints_that_the_user_deletes_here_stay_in_the_cloud(cloud, tmp_path):
    train = (TRAIN, "--run_dir gs://bucket/runs/a --save_interval 1")
    call_script("scripts/image_train.py", *train, "--max_steps 2")
    names = sorted(path.name for path in (cloud / "runs" / "a").glob("*.pt"))
    assert len(names) == 6
    here = tmp_path / "data" / "mirror" / "gs" / "bucket" / "runs" / "a"
    subprocess.run(["rm", *here.glob("*.pt")], check=True)
    sample = "--model_path gs://bucket/runs/a/ema_0.9_000002.pt --num_samples 1 --batch_size 1"
    call_script("scripts/image_sample.py", sample)
    assert (cloud / "runs" / "a" / "samples_1x16x16x3.npz").is_file()
    assert sorted(path.name for path in (cloud / "runs" / "a").glob("*.pt")) == names
    call_script("scripts/image_train.py", *train, "--max_steps 3 --keep 1")
    assert [path.name for path in (cloud / "runs" / "a").glob("opt*.pt")] == ["opt000003.pt"]


def test_run_that_begins_afresh_leaves_nothing_of_the_former_one_in_the_cloud(cloud):
    train = (TRAIN, "--run_dir gs://bucket/runs/a --save_interval 1")
    call_script("scripts/image_train.py", *train, "--max_steps 2")
    call_script("scripts/image_train.py", *train, "--max_steps 1 --fresh")
    assert [path.name for path in (cloud / "runs" / "a").glob("opt*.pt")] == ["opt000001.pt"]


def test_training_starts_from_a_checkpoint_in_the_cloud(cloud, tmp_path, capsys):
    call_script("scripts/image_train.py", TRAIN, "--run_dir", tmp_path / "run", "--max_steps 1")
    shutil.copytree(tmp_path / "run", cloud / "runs" / "b")
    start = "--resume_checkpoint gs://bucket/runs/b/model000001.pt --max_steps 2"
    call_script("scripts/image_train.py", TRAIN, start, "--run_dir", tmp_path / "next")
    assert "continues after 1 updates" in capsys.readouterr().out
    fetched = {line.split()[0].split("/")[-1] for line in transfers(cloud) if line.startswith("gs://bucket/runs/b")}
    assert fetched == {"model000001.pt", "ema_0.9_000001.pt", "opt000001.pt", "config.json", "progress.csv"}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--data_dir gs://bucket/none", "--data_dir gs://bucket/none: no such file or folder"),
        ("--data_dir gs://bucket/none.npz", "--data_dir gs://bucket/none.npz: no such file or folder"),
        ("--data_dir https://example.com/set", "only those of Azure"),
        ("--resume_checkpoint gs://bucket/none/model000001.pt", "gs://bucket/none/model000001.pt: no such file"),
        ("--run_dir gs://", "--run_dir gs://: not a remote path"),
    ],
)
def test_what_is_not_in_the_cloud_is_one_sentence(flags, message, cloud, tmp_path):
    with pytest.raises(UserError, match=message):
        call_script("scripts/image_train.py", TRAIN, "--run_dir", tmp_path / "run", flags)


def test_scripts_themselves_reach_the_cloud_and_log_there(cloud, tmp_path):
    env = install_for_scripts(cloud.parent, tmp_path / "site")
    env |= {"DATA_ROOT": str(tmp_path / "data"), "OPENAI_LOGDIR": "gs://bucket/runs/c"}
    done = run_script("scripts/image_train.py", TRAIN, "--max_steps 1", **env)
    assert done.returncode == 0, done.stderr
    assert (cloud / "runs" / "c" / "model000001.pt").is_file()
    missing = run_script("scripts/image_sample.py", "--model_path gs://bucket/none.pt", **env)
    assert missing.returncode == 2
    assert missing.stderr == "image_sample.py: error: --model_path gs://bucket/none.pt: no such file or folder\n"


def test_storage_that_fails_loses_nothing_here(cloud, tmp_path, monkeypatch, capsys):
    import blobfile
    from improved_diffusion import blob

    def refuse(source, target, **options):
        if target.startswith("gs://"):
            raise blobfile.Error("the disk of the cloud is full")
        return shutil.copyfile(source.replace("gs://", f"{cloud.parent}/"), target)

    monkeypatch.setattr(blob._context(), "copy", refuse)
    with pytest.raises(UserError, match=r"the results are kept but not sent: .* the disk of the cloud is full"):
        call_script("scripts/image_train.py", TRAIN, "--run_dir gs://bucket/runs/a --max_steps 1")
    assert "warning: not sent, the next checkpoint tries again" in capsys.readouterr().err
    assert (tmp_path / "data" / "mirror" / "gs" / "bucket" / "runs" / "a" / "model000001.pt").is_file()


def test_tensorboard_files_hold_the_rows_of_progress(cloud, tmp_path, monkeypatch):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    monkeypatch.setenv("OPENAI_LOG_FORMAT", "stdout,log,csv,tensorboard")
    for steps in (2, 3):
        call_script("scripts/image_train.py", TRAIN, "--run_dir", tmp_path / "run", f"--max_steps {steps}")
    events = accumulator.EventAccumulator(str(tmp_path / "run" / "tb")).Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3]
    last = json.loads((tmp_path / "run" / "progress.json").read_text().splitlines()[-1])
    assert events.Scalars("loss")[-1].value == pytest.approx(last["loss"], rel=1e-5)
