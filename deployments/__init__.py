"""Everything that knows Ray, Redis, S3 or HTTP."""
