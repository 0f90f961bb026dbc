"""``python -m experiments.attribution``."""

from experiments.attribution.experiment import attribution
from experiments.command import run_command

run_command(attribution)
