"""Bench: a recipe becomes jobs, jobs become records, records become tables and figures.

Jobs call the verbs as anyone would; nothing here computes what a verb does not.
"""
