"""Floor 4: the real distributed run of a plan; needs the extra executor (torch, triton)."""
