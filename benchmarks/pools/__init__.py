"""Pools: how pools are learned, and what they are worth to a task with few images."""
