"""Adapters: one file per way to learn a task on a frozen backbone; each `build` returns one.

What several share begins with an underscore, as what no method is. Nothing here has a training
loop or reads a test split: `learning` trains what is built here.
"""
