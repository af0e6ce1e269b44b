"""The gallery's dialect: models, datasets, tasks and images, as its document has them."""
