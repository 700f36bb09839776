"""Placement: what `pro_vpt` is made of: rules, scores, allocators, and the prompt that moves.

Where a token stands is decided here and in no other method; how it enters is `backbone.walk`'s.
"""
