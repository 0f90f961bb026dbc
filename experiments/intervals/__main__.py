"""``python -m experiments.intervals``."""

from experiments.command import run_command
from experiments.intervals.experiment import intervals

run_command(intervals)
