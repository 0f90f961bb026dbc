"""Floor 1: routing traces, load tables and timelines. Imports nothing of ours and nothing heavy."""
