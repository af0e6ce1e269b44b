"""Where pictures lie: a local folder or S3. Imports neither ray nor torch."""
