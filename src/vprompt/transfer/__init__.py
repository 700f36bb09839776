"""Transfer: one file per way to weigh the sources of a pool; `weigh(evidence)` returns a Mix.

`plan()` says what has to be gathered, `adapter()` what is trained in place of the summed prompt.
`weigh` sees the evidence and nothing else, and no file here reads a test split.
"""
