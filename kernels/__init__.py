"""Triton attention and KV kernels, one file each, with their truth in torch."""
