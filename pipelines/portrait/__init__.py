"""Portraits: a subject's face in a template photo. Needs no server, no torch and no network."""
