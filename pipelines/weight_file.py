"""Which files of weights are refused unread. Imports no torch."""

PICKLES = frozenset({".ckpt", ".pt", ".pth", ".bin", ".pkl"})
"""Endings of pickles, which can run code when they are opened."""
