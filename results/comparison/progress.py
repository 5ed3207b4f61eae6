"""The progress bar of all scripts."""

from tqdm import tqdm


def bar(total: int | None, initial: int, desc: str, unit: str) -> tqdm:
    """Return a tqdm bar, which prints nothing if stderr is not a terminal."""
    return tqdm(total=total, initial=initial, desc=desc, unit=unit, disable=None, dynamic_ncols=True, smoothing=0.1)
