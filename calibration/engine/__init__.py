"""A small serving engine on our own kernels: a decoder, its memory, continuous batching, and an HTTP front."""
