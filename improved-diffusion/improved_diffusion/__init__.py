"""Improved denoising diffusion probabilistic models (Nichol & Dhariwal 2021), in PyTorch.

The module names are those of OpenAI's package of the same name:

- `script_util`: flags, and the networks and processes that they mean;
- `unet`, `nn`: the noise-prediction network;
- `schedules`: noise schedules and the choice of timesteps, in NumPy;
- `gaussian_diffusion`, `respace`, `losses`: the process, its samplers and its losses;
- `resample`: the timesteps that a training step samples;
- `training`: one optimizer step (microbatches, mixed precision, EMA, loss statistics);
- `train_util`, `image_datasets`, `logger`: OpenAI's training loop, data and log, for scripts written for them;
- `dist_util`, `launch`: several ranks;
- `samplers`, `solvers`: sampling in few evaluations;
- `few_steps`, `distillation`: one to four evaluations, and the loss that tunes a network for them;
- `blob`, `checkpoints`, `log_formats`: files, local and in cloud storage.

Importing `improved_diffusion` or `improved_diffusion.flags` does not import torch, so that scripts can validate their
flags first.
"""
