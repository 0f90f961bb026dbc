"""A scenario with its data: trace, placement, policies and cost models, read and checked."""
