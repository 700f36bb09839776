"""Backbones: one file per family of frozen models, each with a `load` that returns a Backbone."""
