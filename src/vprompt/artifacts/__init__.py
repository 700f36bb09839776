"""Artifacts: a prompt on disk, a pool of them, a hub, and how far each moved from its start.

All that strangers wrote is read here, as data and within bounds; nothing here trains.
"""
