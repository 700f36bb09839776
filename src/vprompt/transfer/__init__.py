"""Transfer: one file per way to weigh the sources of a pool; `weigh(evidence)` returns Weights."""
