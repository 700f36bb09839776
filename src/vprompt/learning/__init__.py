"""Learning: adapters with their heads, the one training loop, and what it needs.

What a method trains is a file of `adapters/`; this room holds what all of them share.
"""
