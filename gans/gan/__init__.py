"""DCGAN: networks, losses, training step and sampling; used by the scripts next to this folder."""
