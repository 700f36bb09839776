"""Core: what any program needs: errors, files, progress, plug-ins, seeds, precision, processes.

Nothing here knows what a prompt, an image or a model is, and nothing here imports another room.
"""
