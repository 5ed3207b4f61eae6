"""DCGAN: networks, losses, training step and sampling; used by the scripts beside this folder."""
