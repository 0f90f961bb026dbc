"""``python -m experiments.fewer_experts``."""

from experiments.command import run_command
from experiments.fewer_experts.experiment import fewer_experts

run_command(fewer_experts)
