"""Metrics: one file per transferability score; higher is better, whatever the metric.

`score(features, labels, *, settings) -> float` is the usual form. The names of the parameters
before the `*` say what a metric needs, of what `vprompt.pooling.scoring.INPUTS` lists. `RANGE`
holds the least and the largest value that any setting allows.
"""
