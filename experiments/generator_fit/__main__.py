"""``python -m experiments.generator_fit``."""

from experiments.command import run_command
from experiments.generator_fit.experiment import generator_fit

run_command(generator_fit)
