"""Reference arrays, networks filled from parameter names, scripts run as a user runs them."""

import contextlib
import importlib.util
import io
import json
import math
import os
import runpy
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any, ClassVar
from unittest import mock

import numpy as np
import torch
from improved_diffusion.script_util import model_and_diffusion_defaults
from PIL import Image

FOLDER = Path(__file__).resolve().parents[1]
REFERENCE = FOLDER.parent / "tests" / "reference"


class Archive:
    """A reference archive; `read` holds the keys of all that were read in this process, by archive."""

    read: ClassVar[dict[str, set[str]]] = {}

    def __init__(self, name: str) -> None:
        self.arrays, self.used = np.load(REFERENCE / f"{name}.npz"), self.read.setdefault(name, set())

    def __contains__(self, key: str) -> bool:
        return key in self.arrays

    def __getitem__(self, key: str) -> np.ndarray:
        self.used.add(key)
        return self.arrays[key]


class Case:
    """The arrays of one case of a reference archive, as tensors; float64 tables as arrays."""

    def __init__(self, archive: str, case: str) -> None:
        self.arrays, self.case = Archive(archive), case
        self.config: dict[str, Any] = json.loads(str(self.table("config")))

    def __contains__(self, name: str) -> bool:
        return f"{self.case}/{name}" in self.arrays

    def __getitem__(self, name: str) -> torch.Tensor:
        return torch.from_numpy(self.table(name))

    def table(self, name: str) -> np.ndarray:
        return self.arrays[f"{self.case}/{name}"]


def write_images(folder: Path, count: int, size: int = 16) -> Path:
    """Write random images in two classes, dog_00.png, cat_01.png and so on, and return the folder."""
    pixels = np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(folder / f"{'cat' if i % 2 else 'dog'}_{i:02d}.png")
    return folder


def write_run(folder: Path, network: torch.nn.Module, options: dict[str, Any]) -> Path:
    """Write the folder of a finished run of 20 updates: EMA weights `fill_from_names` and config.json; return it."""
    folder.mkdir()
    torch.save(fill_from_names(network).state_dict(), folder / "ema_0.99_000020.pt")
    finished = {"reason": "max_steps 20", "steps": 20, "images_seen": 80, "wall_seconds": 2.0}
    config = {"model": "improved-diffusion", "options": options, "finished": finished}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def same_weights(folder: Path, other: Path, step: int) -> bool:
    """Return True if two runs have the same network and EMA weights of a step."""
    names = (f"model{step:06d}.pt", f"ema_0.9999_{step:06d}.pt")
    states = [[torch.load(run / name, weights_only=True) for name in names] for run in (folder, other)]
    return all(
        one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)
        for one, two in zip(*states, strict=True)
    )


def fill_from_names(model: torch.nn.Module) -> torch.nn.Module:
    """Give every parameter the value that its own name determines (tests/reference/README.md)."""
    state = {name: recipe_value(name, tuple(value.shape)) for name, value in model.state_dict().items()}
    model.load_state_dict(state)
    return model.eval()


def recipe_value(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    value = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode()))).standard_normal(shape)
    if len(shape) >= 2:
        value = value / math.sqrt(np.prod(shape[1:]))
    else:
        value = 0.1 * value + (1.0 if name.endswith("weight") else 0.0)
    return torch.from_numpy(value.astype(np.float32))


def words(*flags: Any) -> list[str]:
    """Return flags as a shell would hand them on: strings split at spaces, paths and numbers whole."""
    return [word for flag in flags for word in (flag.split() if isinstance(flag, str) else [str(flag)])]


def script_command(script: str, *flags: Any) -> list[str]:
    """Return the command that runs a script of this folder by its path."""
    return [sys.executable, str(FOLDER / script), *words(*flags)]


def call_script(script: str, *flags: Any) -> int:
    """Call a script's main in this process, which saves the seconds of importing torch; return its exit status."""
    path = FOLDER / script
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main(module.parse_args(words(*flags)))


def script_env(**env: str) -> dict[str, str]:
    """Return the environment of a script: one core, and no folder from the user's shell."""
    kept = {name: value for name, value in os.environ.items() if name not in ("OPENAI_LOGDIR", "DATA_ROOT", "PRESET")}
    return {**kept, "OMP_NUM_THREADS": "1", **env}


def run_script(script: str, *flags: Any, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a script of this folder as a user does, but in this process, which has torch."""
    command = script_command(script, *flags)
    out, err = io.StringIO(), io.StringIO()
    folder = str((FOLDER / script).parent)
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.dict(os.environ, script_env(**env), clear=True))
        stack.enter_context(mock.patch.object(sys, "argv", command[1:]))
        stack.enter_context(mock.patch.object(sys, "path", [folder, *sys.path]))
        stack.enter_context(contextlib.redirect_stdout(out))
        stack.enter_context(contextlib.redirect_stderr(err))
        try:
            runpy.run_path(command[1], run_name="__main__")
            status: Any = 0
        except SystemExit as end:
            status = end.code or 0
    return subprocess.CompletedProcess(command, status, out.getvalue(), err.getvalue())


def tiny_flags(**changes: Any) -> dict[str, Any]:
    """Return the flags of a network that a CPU trains in milliseconds."""
    tiny = {"image_size": 16, "num_channels": 32, "num_res_blocks": 1, "diffusion_steps": 100}
    return {**model_and_diffusion_defaults(), **tiny, **changes}
