"""The commands, by subject; ``moesim.commands.cli`` registers them."""
