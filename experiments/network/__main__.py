"""``python -m experiments.network``."""

from experiments.command import run_command
from experiments.network.experiment import network

run_command(network)
