"""The two published DDGAN lines, in this process, on a made-up CIFAR-10, with small overrides."""

import json
import pickle
import shlex
import shutil

import numpy as np
import pytest
import torchvision.datasets.cifar as torchvision_cifar
from comparison import cli
from comparison.scores.metrics import moments

# As published, word for word.
TRAIN = (
    "python3 -u denoising-diffusion-gan/train_ddgan.py --dataset cifar10 --exp ddgan_cifar10_exp1 --num_channels 3 "
    "--num_channels_dae 128 --num_timesteps 4 --num_res_blocks 2 --batch_size 128 --num_epoch 50 --ngf 64 --nz 100 "
    "--z_emb_dim 256 --n_mlp 4 --embedding_type positional --use_ema --ema_decay 0.9999 --r1_gamma 0.02 --lr_d 1.25e-4 "
    "--lr_g 1.6e-4 --lazy_reg 15 --num_process_per_node 1 --ch_mult 1 2 2 2 --save_content "
    "> denoising-diffusion-gan/out/ddgan_cifar.log"
)
SAMPLE = (
    "python3 -u denoising-diffusion-gan/test_ddgan.py --dataset cifar10 --exp ddgan_cifar10_exp1 --num_channels 3 "
    "--num_channels_dae 128 --num_timesteps 4 --num_res_blocks 2 --nz 100 --z_emb_dim 256 --n_mlp 4 --ch_mult 1 2 2 2 "
    "--epoch_id 50 --compute_fid --real_img_dir denoising-diffusion-gan/data/cifar-10-batches-py/ "
    "> denoising-diffusion-gan/out/test_ddgan_cifar50.log"
)
SMALL = "--num_channels_dae 8 --num_res_blocks 1 --z_emb_dim 8 --n_mlp 1 --ch_mult 1 1 --attn_resolutions 16"
SMALL_TRAIN = f"{SMALL} --ngf 2 --t_emb_dim 8 --batch_size 8 --device cpu --threads 1"
SMALL_SAMPLE = f"{SMALL} --num_samples 8 --batch_size 8 --device cpu --threads 1"
RUN = "results/runs/denoising-diffusion-gan/ddgan_cifar10_exp1"
OUT = "denoising-diffusion-gan/out"
STAND_IN = {
    "require": lambda *_: None,
    "find_weights": lambda path: path,
    "image_statistics": lambda images, *_, **__: moments(images[:, :, ::8, ::8].flatten(1).float()),
}


def write_cifar10(folder, per_batch=2):
    """Write random images as torchvision keeps CIFAR-10."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        pixels = rng.integers(0, 256, (per_batch, 3072), dtype=np.uint8)
        content = {"data": pixels, "labels": [i % 10 for i in range(per_batch)]}
        # Python 2's strings, in which the real batches are written, are read as text or as bytes.
        (folder / name).write_bytes(pickle.dumps(content | {key.encode(): value for key, value in content.items()}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": [f"class {i}" for i in range(10)]}))


@pytest.fixture(scope="module")
def machine(checkout, tmp_path_factory):
    """A data root with a small CIFAR-10 that torchvision accepts; pixels stand in for Inception features."""
    folder = tmp_path_factory.mktemp("machine")
    write_cifar10(folder / "cifar-10-batches-py")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DATA_ROOT", str(folder))
        patch.setattr(cli, "repo_root", lambda: checkout)
        patch.setattr(torchvision_cifar, "check_integrity", lambda path, md5=None: True)
        patch.syspath_prepend(checkout / "denoising-diffusion-gan")
        # the package may have been imported from the repository itself by another test
        patch.setattr("ddgan.training_setup.DATA_LINK", checkout / "denoising-diffusion-gan" / "data")
        for name, stand_in in STAND_IN.items():
            patch.setattr(f"ddgan.fid.{name}", stand_in)
        yield folder


@pytest.fixture(scope="module")
def trained(checkout, machine, run_here):
    """The run that the training line leaves; the copy of the repository is left as it was for other tests."""
    shutil.rmtree(checkout / "results" / "runs", ignore_errors=True)  # of other test files
    run_line(f"{TRAIN} {SMALL_TRAIN}", run_here, checkout)
    yield checkout / RUN
    shutil.rmtree(checkout / RUN)
    (checkout / "denoising-diffusion-gan" / "data").unlink()


def run_line(line, run_here, checkout):
    """Run a line as bash would, its console redirected to a file."""
    words = shlex.split(line)[2:]
    redirection = words.index(">")
    target = words.pop(redirection + 1)
    words.remove(">")
    status, out, err = run_here(words, checkout)
    assert status == 0, out + err
    (checkout / target).write_text(out)


def test_training_line_leaves_netg_50_and_its_console_in_the_folder_out(trained, checkout):
    assert (trained / "netG_50.pth").is_file()
    assert (trained / "content.pth").is_file()
    config = json.loads((trained / "config.json").read_text())
    assert config["finished"]["reason"] == "num_epoch 50"
    assert config["finished"]["steps"] == 50
    assert "cifar10, 10 images, 1 updates per epoch" in (checkout / OUT / "ddgan_cifar.log").read_text()


def test_folder_data_leads_to_the_data_root_after_a_cifar10_run(trained, checkout, machine):
    link = checkout / "denoising-diffusion-gan" / "data"
    assert link.is_symlink()
    assert link.resolve() == machine.resolve()
    assert (link / "cifar-10-batches-py" / "data_batch_1").is_file()


def test_sampling_line_scores_the_samples_of_epoch_50_against_the_batches(trained, checkout, run_here):
    run_line(f"{SAMPLE} {SMALL_SAMPLE}", run_here, checkout)
    with np.load(trained / "samples.npz") as archive:
        assert archive["arr_0"].shape == (8, 32, 32, 3)
    facts = json.loads((trained / "sampling.json").read_text())
    assert (facts["checkpoint"], facts["nfe"]) == ("netG_50.pth", 4)
    assert facts["fid_reference"] == "denoising-diffusion-gan/data/cifar-10-batches-py/"
    assert facts["fid"] > 0
    assert f"FID {facts['fid']:.3f} (8 images" in (checkout / OUT / "test_ddgan_cifar50.log").read_text()
