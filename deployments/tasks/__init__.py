"""Durable tasks in Redis. Imports neither ray nor torch."""
