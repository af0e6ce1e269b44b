"""Step-level continuous batching for Stable Diffusion UNets."""
