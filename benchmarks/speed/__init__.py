"""Speed: what a step, a pool, a solver and a cluster cost, against the obvious alternatives."""
