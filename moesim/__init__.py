"""Floor 3: scenarios, cost models, the simulation, its analysis, and the command line."""

__version__ = "0.1.0"
