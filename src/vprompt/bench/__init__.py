"""Bench: a recipe becomes jobs, jobs become records, records become tables."""
