"""Sampling: drawing image sets, timing a sampler, walks between latents."""
