"""Load .pt files with a look at their check sums, which torch.load ignores."""

import warnings
import zipfile
from typing import IO, Any

import torch


class DamagedError(ValueError):
    """A record of the file is not what was written."""


def load(file: IO[bytes], path: str, **kwargs: Any) -> Any:
    """Load a file of plain types and tensors; arguments of `torch.load`.

    Raises:
        DamagedError: the CRC-32 of a record is wrong; the error names `path`. Files of torch before 1.6 have none.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            record = archive.testzip()
    except (zipfile.BadZipFile, EOFError, NotImplementedError, ValueError):
        record = None  # truncated, or of another format: torch.load tells
    if record:
        raise DamagedError(f"{path}: damaged; the check sum of {record} is wrong")
    file.seek(0)
    with warnings.catch_warnings(action="ignore"):  # of torch on pickles, before it refuses them
        return torch.load(file, **{"weights_only": True, **kwargs})
