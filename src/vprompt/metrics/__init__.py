"""Metrics: one file per transferability score; `score(features, labels)`, higher is better."""
