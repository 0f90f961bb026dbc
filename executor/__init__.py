"""Floor 4: the real distributed run of a plan. Nothing runs here yet, and no command offers it."""
