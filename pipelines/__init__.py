"""What the product computes: diffusion models, samplers, the engine. Usable from a notebook."""
