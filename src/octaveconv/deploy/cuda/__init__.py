"""The CUDA engine: inference on an NVIDIA GPU, step by step, in CUDA graphs."""
