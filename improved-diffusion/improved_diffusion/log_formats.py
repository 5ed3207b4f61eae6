"""Where `logger` writes: the console, log.txt, progress.csv, progress.json, TensorBoard."""

import csv
import json
import math
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

from . import blob


class Format:
    """A place for messages and rows of values; each does with them what it can."""

    def write_text(self, text: str) -> None:
        """Write a message."""

    def write_values(self, values: Mapping[str, Any]) -> None:
        """Write a row of plain values."""

    def drop_after(self, step: int) -> None:
        """Drop the rows whose `step` is larger, of a run that goes on from there."""

    def close(self) -> None:
        """Close what was opened."""


class HumanFormat(Format):
    """Messages, and values as a table of two columns; to a file, or to the console as it is at the time.

    Args:
        path: of the file, which is continued; None for the console.
    """

    def __init__(self, path: str | None) -> None:
        self._path = path

    def write_text(self, text: str) -> None:
        if self._path is None:
            print(text, file=sys.stdout, flush=True)
        else:
            with blob.open_file(self._path, "a") as file:
                file.write(text + "\n")

    def write_values(self, values: Mapping[str, Any]) -> None:
        cells = [(key, f"{val:.5g}" if isinstance(val, float) else str(val)) for key, val in sorted(values.items())]
        left, right = (max(len(cell[column]) for cell in cells) for column in (0, 1))
        rule = "-" * (left + right + 7)
        rows = [f"| {key:<{left}} | {val:<{right}} |" for key, val in cells]
        self.write_text("\n".join([rule, *rows, rule]))


class JSONFormat(Format):
    """One object per line.

    Args:
        path: of the file, which is continued.
    """

    def __init__(self, path: str) -> None:
        self._path = path

    def write_values(self, values: Mapping[str, Any]) -> None:
        with blob.open_file(self._path, "a") as file:
            file.write(json.dumps(values) + "\n")

    def drop_after(self, step: int) -> None:
        if os.path.exists(self._path):
            with blob.open_file(self._path) as file:
                lines = [line for line in file if line.endswith("\n")]
            with blob.open_file(self._path, "w") as file:
                file.writelines(line for line in lines if json.loads(line).get("step", 0) <= step)


class CSVFormat(Format):
    """One line per row under one header; a new key gives all lines a column, atomically.

    Args:
        path: of the file, which is continued; a line that was cut short is left out.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        text = self._read()
        whole = text[: text.rfind("\n") + 1]
        self._keys = next(csv.reader(whole.splitlines()[:1]), [])
        if whole != text:
            self._rewrite(whole)

    def write_values(self, values: Mapping[str, Any]) -> None:
        new = [key for key in values if key not in self._keys]
        if new:
            self._keys += sorted(new)
            self._rewrite(self._read())
        with blob.open_file(self._path, "a") as file:
            csv.DictWriter(file, self._keys, lineterminator="\n").writerow(values)

    def drop_after(self, step: int) -> None:
        self._rewrite(self._read(), step)

    def _read(self) -> str:
        if not os.path.exists(self._path):
            return ""
        with blob.open_file(self._path) as file:
            return file.read()

    def _rewrite(self, text: str, step: float = math.inf) -> None:
        rows = [row for row in csv.DictReader(text.splitlines()) if float(row.get("step") or 0) <= step]
        with blob.open_file(self._path, "w") as file:
            writer = csv.DictWriter(file, self._keys, lineterminator="\n")
            if self._keys:
                writer.writeheader()
                writer.writerows(rows)


class TensorBoardFormat(Format):
    """Event files for TensorBoard, by the value `step`, else by the number of the row.

    Args:
        folder: of the event files.

    Raises:
        ImportError: the package tensorboard is not installed.
    """

    def __init__(self, folder: str) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise ImportError(
                "the log format tensorboard needs the package tensorboard (pip install tensorboard)"
            ) from None
        self._folder, self._rows = folder, 0
        self._open: Callable[..., SummaryWriter] = SummaryWriter
        self._writer = SummaryWriter(folder)

    def write_values(self, values: Mapping[str, Any]) -> None:
        self._rows += 1
        step = int(values.get("step", self._rows))
        for key, val in values.items():
            if isinstance(val, int | float):
                self._writer.add_scalar(key, val, step)
        self._writer.flush()

    def drop_after(self, step: int) -> None:
        self._writer.close()
        self._writer = self._open(self._folder, purge_step=step + 1)

    def close(self) -> None:
        self._writer.close()


FORMATS = ("stdout", "log", "csv", "json", "tensorboard")


def make_format(name: str, folder: str, suffix: str) -> Format:
    """Open one of `FORMATS` in a folder; the suffix goes before the ending of its file's name.

    Raises:
        ImportError: a package is missing.
    """
    if name == "stdout":
        return HumanFormat(None)
    if name == "log":
        return HumanFormat(os.path.join(folder, f"log{suffix}.txt"))
    if name == "csv":
        return CSVFormat(os.path.join(folder, f"progress{suffix}.csv"))
    if name == "json":
        return JSONFormat(os.path.join(folder, f"progress{suffix}.json"))
    return TensorBoardFormat(os.path.join(folder, f"tb{suffix}"))
