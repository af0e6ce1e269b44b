"""HTTP dialects over one core. Imports neither ray nor torch."""
