"""Outputs of `logger`: the console, log.txt, progress.csv, progress.json and TensorBoard event files."""

import csv
import json
import math
import os
import sys
from collections.abc import Mapping
from typing import Any

from . import blob


class Format:
    """An output for messages and rows of values; the defaults ignore them."""

    def write_text(self, text: str) -> None:
        """Write a message."""

    def write_values(self, values: Mapping[str, Any]) -> None:
        """Write a row of numbers and text."""

    def drop_after(self, step: int) -> None:
        """Delete the rows with a larger `step`: the run resumes there."""

    def close(self) -> None:
        """Close the files."""


class HumanFormat(Format):
    """Messages, and values as a table of two columns, appended to the file `path`; None for the console."""

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
    """One JSON object per line, appended to the file `path`; NaN and infinity become null."""

    def __init__(self, path: str) -> None:
        self._path = path

    def write_values(self, values: Mapping[str, Any]) -> None:
        with blob.open_file(self._path, "a") as file:
            finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
            file.write(json.dumps(finite) + "\n")

    def drop_after(self, step: int) -> None:
        if os.path.exists(self._path):
            with blob.open_file(self._path) as file:
                lines = [line for line in file if line.endswith("\n")]
            with blob.open_file(self._path, "w") as file:
                file.writelines(line for line in lines if json.loads(line).get("step", 0) <= step)


class CSVFormat(Format):
    """One line per row under one header, appended to the file `path`; a new key adds a column to all lines.

    An incomplete last line, of a killed process, is dropped.
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
    """TensorBoard event files in `folder`, by the value `step`, else by the number of the row.

    Raises:
        ImportError: the package tensorboard is not installed.
    """

    def __init__(self, folder: str) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise ImportError("log format tensorboard needs the package tensorboard") from None
        self._folder, self._rows = folder, 0
        self._writer: Any = SummaryWriter(folder)

    def write_values(self, values: Mapping[str, Any]) -> None:
        self._rows += 1
        step = int(values.get("step", self._rows))
        for key, val in values.items():
            if isinstance(val, int | float):
                self._writer.add_scalar(key, val, step)
        self._writer.flush()

    def drop_after(self, step: int) -> None:
        self._writer.close()
        self._writer = type(self._writer)(self._folder, purge_step=step + 1)

    def close(self) -> None:
        self._writer.close()


def make_format(name: str, folder: str, suffix: str) -> Format:
    """Open one of `flags.LOG_FORMATS` in a folder; the suffix precedes the ending of its file name."""
    if name == "stdout":
        return HumanFormat(None)
    if name == "log":
        return HumanFormat(os.path.join(folder, f"log{suffix}.txt"))
    if name == "csv":
        return CSVFormat(os.path.join(folder, f"progress{suffix}.csv"))
    if name == "json":
        return JSONFormat(os.path.join(folder, f"progress{suffix}.json"))
    return TensorBoardFormat(os.path.join(folder, f"tb{suffix}"))
