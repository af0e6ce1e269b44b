"""LoRA training: a job, a checkpoint and pictures in; one adapter file out."""
