"""``python -m experiments.placement``."""

from experiments.command import run_command
from experiments.placement.experiment import placement

run_command(placement)
