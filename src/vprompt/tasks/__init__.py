"""Tasks: one file per source of labelled images, each with a `load` that returns a Task."""
