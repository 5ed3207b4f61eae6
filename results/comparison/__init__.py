"""What must be the same for every model: images, runs, randomness, timing, metrics, plots, report."""
