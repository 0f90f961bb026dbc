"""From a problem to a placement: the solvers, and what they are made of."""
