"""Recipe of the shipped checkpoint `pipelines/embedded/`: `python -m training.embedded_model all`."""
