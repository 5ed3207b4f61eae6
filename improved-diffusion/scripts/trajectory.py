"""The steps from noise to image: trajectory.png."""

from collections.abc import Callable
from pathlib import Path

import torch
from comparison.data.images import to_uint8
from comparison.files import json_matches, read_json, write_json
from comparison.png import save_grid

IMAGES, COLUMNS = 8, 10
FILE = "trajectory.png"


def draw_trajectory(folder: Path, draw: Callable[..., torch.Tensor], steps: int, *, sampler: str, seed: int) -> None:
    """Write trajectory.png beside samples, two rows an image, and note it in their sampling.json.

    The upper row shows x_t at up to COLUMNS evaluations, evenly spaced from the first to the last, the lower row the
    image that the network predicts from it; the last one is the sample.

    Args:
        folder: folder of sampling.json; nothing is done where that has the picture already.
        draw: called as draw(indices, on_step), see `generate.ImageSource.sample`.
        steps: evaluations per image.
        sampler: sampler as text.
        seed: seed of the samples.
    """
    record, path = folder / "sampling.json", folder / FILE
    count = min(COLUMNS, steps)
    shown = [round(i * (steps - 1) / max(count - 1, 1)) for i in range(count)]
    note = {"file": FILE, "sampler": sampler, "seed": seed, "images": IMAGES, "evaluations": [i + 1 for i in shown]}
    if path.is_file() and json_matches(record, {"trajectory": note}):
        print(f"{path}: exists already", flush=True)
        return
    seen: list[torch.Tensor] = []  # each (IMAGES, 2, 3, S, S)
    evaluations = iter(range(steps))

    def keep(t: int, x: torch.Tensor, image: torch.Tensor) -> None:
        if next(evaluations) in shown:
            seen.append(to_uint8(torch.stack([x, image], dim=1)).cpu())

    with torch.inference_mode():
        draw(range(IMAGES), keep)
    cells = torch.stack(seen, dim=2)  # (IMAGES, 2, columns, 3, S, S)
    save_grid(cells.flatten(0, 2), path, columns=count)
    write_json(record, {**read_json(record), "trajectory": note})
