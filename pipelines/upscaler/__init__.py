"""Pictures made larger: by resampling, and by networks."""
