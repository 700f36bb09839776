"""Prompts: a prompt as a value, and its algebra: sums, matching, lengths of blocks.

Pure functions of tensors: no images, no model, no disk.
"""
