"""The scores of a run in its scores.csv, and the checkpoint of the best one."""

import shutil
from pathlib import Path

from comparison.files import atomic, write_text
from comparison.runs import read_progress

from .diagnosis import collapses
from .files import BEST, checkpoint_name

FILE = "scores.csv"
COLUMNS = ("step", "images_seen", "wall_seconds", "frechet_distance", "coverage")


class Scores:
    """Rows of scores.csv, in order of their steps; the file is written whole each time.

    Args:
        folder: of the run.
        step: that the run goes on from; later rows, and a later best checkpoint, belong to a future that is gone.
        keep_best: whether the checkpoint of the lowest Frechet distance is kept as best_<step>.pt.

    Attributes:
        rows: column -> number.
    """

    def __init__(self, folder: Path, step: int, keep_best: bool):
        self.folder, self.keep_best = folder, keep_best
        path = folder / FILE
        self.rows = [row for row in read_progress(path) if row["step"] <= step] if path.is_file() else []
        if self.rows:
            self._write()
        else:
            path.unlink(missing_ok=True)
        for later in (found for found in folder.glob(BEST) if self._number(found) > step):
            later.unlink()
        self.keep()

    @property
    def last_step(self) -> int:
        """Step of the newest score, -1 before the first."""
        return int(self.rows[-1]["step"]) if self.rows else -1

    def add(self, step: int, images_seen: int, wall_seconds: float, score: dict[str, float]) -> str:
        """Append a row and return what the log says of it."""
        row = {"step": step, "images_seen": images_seen, "wall_seconds": round(wall_seconds, 3)}
        self.rows.append({**row, **{name: float(f"{value:.6g}") for name, value in score.items()}})
        self._write()
        best, collapsed = collapses([row["coverage"] for row in self.rows])
        words = (
            f"score at step {step}: Frechet distance {score['frechet_distance']:.4g}, coverage {score['coverage']:.3f}"
        )
        if collapsed:
            words += (
                f"\nmode collapse at step {step}: coverage {score['coverage']:.3f} is below half its best, {best:.3f}"
            )
        return words

    def is_best(self) -> bool:
        """Say whether the newest score is the lowest Frechet distance so far."""
        distances = [row["frechet_distance"] for row in self.rows]
        return bool(distances) and distances[-1] < min(distances[:-1], default=float("inf"))

    def keep(self) -> None:
        """Keep the newest score's checkpoint, which is there, as the best one, if it is and that is wanted."""
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
        whole = ("step", "images_seen")
        lines = [",".join(COLUMNS)]
        lines += [",".join(str(int(row[c]) if c in whole else row[c]) for c in COLUMNS) for row in self.rows]
        write_text(self.folder / FILE, "\n".join(lines) + "\n")

    @staticmethod
    def _number(path: Path) -> int:
        digits = path.stem.removeprefix(BEST.partition("*")[0])
        return int(digits) if digits.isdecimal() else -1
