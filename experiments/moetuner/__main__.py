"""``python -m experiments.moetuner``."""

from experiments.command import run_command
from experiments.moetuner.experiment import moetuner

run_command(moetuner)
