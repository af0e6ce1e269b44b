"""AUTOMATIC1111's web API as a dialect: words to submissions, tasks to its answers."""
