"""Improved denoising diffusion probabilistic models (Nichol & Dhariwal 2021), in PyTorch.

The module names are those of OpenAI's package of the same name:

- `script_util`: flags, and the networks and processes that they mean;
- `unet`, `nn`: the noise-prediction network;
- `schedules`: noise schedules and the choice of timesteps, in NumPy;
- `gaussian_diffusion`, `respace`, `losses`: the process, its samplers and its losses;
- `resample`: which timesteps a training step draws;
- `training`: one optimizer step (microbatches, mixed precision, EMA, loss statistics);
- `train_util`, `image_datasets`, `logger`: OpenAI's training loop, data and log, for scripts written for them;
- `dist_util`, `launch`, `watch`: several processes;
- `samplers`, `solvers`: sampling in few evaluations;
- `blob`, `mirror`, `checkpoints`, `log_formats`: files, here and in cloud storage.

Importing `improved_diffusion` or `improved_diffusion.script_util` does not import torch, so that scripts
can judge their flags first.
"""
