"""Data: labelled images: files, lists, splits and pixels, and image sets built and verified.

Nothing here knows of prompts; which layouts become a task is a file of `tasks/` each.
"""
