"""Results: what is measured and written down: accuracies, records, costs, protocols, rankings.

`measure` is the only code that opens a test split.
"""
