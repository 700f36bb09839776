"""Backbones: one file per family of frozen models, each with a `load` that returns a Backbone.

timm, open_clip and checkpoint files are known here and nowhere else. Nothing here is trained, and
no code of a checkpoint is run.
"""
