"""Scripts that a request may choose by `script_name`."""
