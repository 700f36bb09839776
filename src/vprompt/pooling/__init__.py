"""Pooling: from a pool's prompts to the start of tuning: evidence, weights, scales, sums.

How a method weighs is a file of `transfer/`; nothing here opens a test split.
"""
