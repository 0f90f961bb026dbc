"""Real runs: their plans, the processes that run them, and what these measured."""
