"""The progress bar that all scripts share."""

from tqdm import tqdm


def bar(total: int | None, initial: int, desc: str, unit: str) -> tqdm:
    """Return a tqdm bar with ETA that keeps quiet when stderr is not a terminal."""
    return tqdm(total=total, initial=initial, desc=desc, unit=unit, disable=None, dynamic_ncols=True, smoothing=0.1)
