"""Models: a frozen transformer as embed, blocks and pool, and what is computed with it.

Features and closed-form heads are made here; nothing here is trained by gradients. Which library a
model comes from is known to `backbones/` alone.
"""
