"""Faults: is damage believed, do kills and races leave half a result?"""
