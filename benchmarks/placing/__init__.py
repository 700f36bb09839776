"""Placing: does it help to move tokens between blocks?"""
