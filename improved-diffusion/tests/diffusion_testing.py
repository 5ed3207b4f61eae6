"""Reference arrays, networks filled from parameter names, and scripts run as a user runs them."""

import json
import math
import os
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

FOLDER = Path(__file__).resolve().parents[1]
REFERENCE = FOLDER.parent / "tests" / "reference"


class Case:
    """The arrays of one case of a reference archive, as tensors; float64 tables as arrays."""

    def __init__(self, archive: str, case: str) -> None:
        self.arrays = np.load(REFERENCE / f"{archive}.npz")
        self.case = case
        self.config: dict[str, Any] = json.loads(str(self.arrays[f"{case}/config"]))

    def __contains__(self, name: str) -> bool:
        return f"{self.case}/{name}" in self.arrays

    def __getitem__(self, name: str) -> torch.Tensor:
        return torch.from_numpy(self.arrays[f"{self.case}/{name}"])

    def table(self, name: str) -> np.ndarray:
        return self.arrays[f"{self.case}/{name}"]


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


def run_script(script: str, *flags: Any, timeout: float = 120, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a script of this folder by its path and wait for it."""
    return subprocess.run(
        [sys.executable, str(FOLDER / script), *map(str, flags)],
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, "OMP_NUM_THREADS": "1", **env},
    )
