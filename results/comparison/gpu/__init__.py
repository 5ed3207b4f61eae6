"""CUDA: fused normalisation and replayed graphs; everything falls back to plain PyTorch."""
