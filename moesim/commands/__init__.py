"""The commands, by subject; ``moesim.cli`` registers them."""
