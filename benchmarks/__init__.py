"""Ratios against named baselines, each measured in one run. `python -m benchmarks` runs all."""
