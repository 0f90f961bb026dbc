"""``python -m experiments.servers``."""

from experiments.command import run_command
from experiments.servers.experiment import servers

run_command(servers)
