"""``python -m experiments.capacity_aware``."""

from experiments.capacity_aware.experiment import capacity_aware
from experiments.capacity_aware.figure import draw
from experiments.command import run_command

run_command(capacity_aware, draw=draw)
