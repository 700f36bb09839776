"""Searching: is a searched length worth more than one that anyone could write down?"""
