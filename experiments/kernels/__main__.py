"""``python -m experiments.kernels``."""

from experiments.command import run_command
from experiments.kernels.experiment import kernels

run_command(kernels)
