"""Tasks: one file per source of labelled images, each with a `load` that returns a Task.

Images are named or drawn here, and the test split is sealed; `data` decodes them. Nothing here
knows of models, and what is drawn at random is drawn by a `split_seed`.
"""
