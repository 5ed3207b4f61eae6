"""test_ddgan.py in several processes: the images, classes and files of one."""

import json
import subprocess
import sys

import numpy as np
import pytest
import test_ddgan as sampling
import torch
from ddgan.checkpoints import make_generator, save_generator
from ddgan.options import defaults
from helpers_ddgan import FOLDER

FLAGS = ["--device", "cpu", "--precision", "float32", "--threads", "1", "--num_samples", "11", "--batch_size", "3"]


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A checkpoint of three classes, with what a single process draws from it."""
    folder = tmp_path_factory.mktemp("workers")
    config = {**defaults(), "image_size": 16, "num_channels_dae": 8, "ch_mult": [1, 2], "num_res_blocks": 1, "nz": 4}
    config |= {"num_timesteps": 2, "class_cond": True, "num_classes": 3, "class_names": ["a", "b", "c"]}
    torch.manual_seed(0)
    generator = make_generator(config)
    for p in generator.parameters():
        torch.nn.init.normal_(p, std=0.2)
    save_generator(folder / "netG_1.pth", generator.state_dict(), config, step=1, images_seen=8)
    assert sampling.main(sampling.parse_args(["--exp", f"{folder}/", *FLAGS])) == 0
    return folder


def assert_same(run_folder, out):
    alone, together = (np.load(path) for path in (run_folder / "samples.npz", out))
    assert alone["arr_0"].std() > 1
    for name in ("arr_0", "arr_1"):
        np.testing.assert_array_equal(together[name], alone[name])
    facts = json.loads((out.parent / "sampling.json").read_text())
    assert (facts["processes"], facts["images"], facts["nfe"]) == (2, 11, 2)


def test_processes_started_by_the_script_draw_the_images_of_one(run_folder, tmp_path):
    flags = [*FLAGS, "--out", str(tmp_path / "samples.npz"), "--num_process_per_node", "2"]
    assert sampling.main(sampling.parse_args(["--exp", f"{run_folder}/", *flags, "--png_dir", f"{tmp_path}/png"])) == 0
    assert_same(run_folder, tmp_path / "samples.npz")
    assert len(list((tmp_path / "png").iterdir())) == 11


def test_processes_started_by_torchrun_draw_the_images_of_one_and_tell_of_them_once(run_folder, tmp_path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    flags = ["--exp", f"{run_folder}/", *FLAGS, "--out", str(tmp_path / "samples.npz")]
    command = [*torchrun, str(FOLDER / "test_ddgan.py"), *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert_same(run_folder, tmp_path / "samples.npz")
    assert done.stdout.count("sampling time") == 1
