"""scores.csv of a run, and the checkpoint of its best score."""

import shutil
from pathlib import Path

from comparison.files import atomic, write_text
from comparison.runs import read_progress

from .run_paths import BEST, checkpoint_name

FILE = "scores.csv"
COLUMNS = ("step", "images_seen", "wall_seconds", "frechet_distance", "coverage")


class Scores:
    """Rows of scores.csv in order of their steps; each change rewrites the whole file.

    Args:
        folder: run folder.
        step: step that the run resumes from; rows and best checkpoints after it are deleted.
        keep_best: whether to keep the checkpoint of the lowest Frechet distance as best_<step>.pt.

    Attributes:
        rows: list of column -> number.
    """

    def __init__(self, folder: Path, step: int, keep_best: bool):
        self.folder, self.keep_best = folder, keep_best
        path = folder / FILE
        self.rows = [row for row in read_progress(path) if row["step"] <= step] if path.is_file() else []
        if self.rows:
            self._write()
        else:
            path.unlink(missing_ok=True)
        prefix = BEST.partition("*")[0]
        for checkpoint in list(folder.glob(BEST)):
            digits = checkpoint.stem.removeprefix(prefix)
            if digits.isdecimal() and int(digits) > step:
                checkpoint.unlink()
        self.keep()

    @property
    def last_step(self) -> int:
        """Step of the newest score, -1 without any."""
        return int(self.rows[-1]["step"]) if self.rows else -1

    def add(self, step: int, images_seen: int, wall_seconds: float, score: dict[str, float]) -> str:
        """Append a row and return its text for the log."""
        row = {"step": step, "images_seen": images_seen, "wall_seconds": round(wall_seconds, 3)}
        self.rows.append({**row, **{name: float(f"{value:.6g}") for name, value in score.items()}})
        self._write()
        distance, coverage = f"{score['frechet_distance']:.4g}", f"{score['coverage']:.3f}"
        return f"score at step {step}: Frechet distance {distance}, coverage {coverage}"

    def is_best(self) -> bool:
        """Return True if the newest score has the lowest Frechet distance so far."""
        distances = [row["frechet_distance"] for row in self.rows]
        return bool(distances) and distances[-1] < min(distances[:-1], default=float("inf"))

    def keep(self) -> None:
        """With keep_best, copy the newest score's checkpoint to best_<step>.pt if it exists and is the best one."""
        if not self.keep_best or not self.is_best():
            return
        source = self.folder / checkpoint_name(self.last_step)
        target = self.folder / BEST.replace("*", f"{self.last_step:06d}")
        if not source.is_file() or target.is_file():
            return
        with atomic(target) as temporary:
            shutil.copyfile(source, temporary)
        for older in self.folder.glob(BEST):
            if older != target:
                older.unlink()

    def _write(self) -> None:
        integers = ("step", "images_seen")
        lines = [",".join(COLUMNS)]
        lines += [",".join(str(int(row[c]) if c in integers else row[c]) for c in COLUMNS) for row in self.rows]
        write_text(self.folder / FILE, "\n".join(lines) + "\n")
