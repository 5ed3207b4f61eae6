"""The metrics: features, distances, neighbours, modes, controls and the standard Inception scores."""
