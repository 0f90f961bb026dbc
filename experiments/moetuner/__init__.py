"""MoETuner's placement of Mixtral-8x7B on one node and on two, and what it is without its assumption."""
