"""Placement: what `pro_vpt` is made of: rules, scores, allocators, and the prompt that moves."""
