"""Task prompt vectors: every source's move added in full to the start, none weighed.

A task prompt vector is a prompt less its initialisation. The sum has no scale, so it grows with the
pool; `uniform` with `move_scale=auto` has the same direction and chooses how far to go.

Reference: Belanec et al., "Task Prompt Vectors: Effective Initialization through Multi-Task
Soft-Prompt Transfer", ECML PKDD 2025, arXiv 2408.01119.
"""

import torch

from vprompt.pooling.evidence import Evidence
from vprompt.pooling.mix import Mix, Plan


def plan() -> Plan:
    """Ask for a sum of moves whose coefficients are all 1."""
    return Plan(move_scale="sources", safeguard=False)


def weigh(evidence: Evidence) -> Mix:
    """Return 1/M for every source; times M, the scale, each counts in full."""
    return Mix(torch.full((len(evidence),), 1 / len(evidence), dtype=torch.float64))
