"""Textual inversion: words that stand for learned vectors in front of the text encoders."""
