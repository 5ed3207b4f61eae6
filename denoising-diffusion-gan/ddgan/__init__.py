"""Denoising diffusion GAN (Xiao, Kreis and Vahdat 2022): networks, process, losses, training state, checkpoints."""
