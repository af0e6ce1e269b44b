"""Recipe of the shipped `pipelines/embedded/`: `python -m training.embedded_model all`."""
