"""From a scenario to a real run: what of it can run, its plan, and the processes that run it."""
