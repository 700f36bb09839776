"""Inference: what one does with a finished artefact: label images, measure it, serve it.

Nothing here trains, and nothing here writes an artefact.
"""
