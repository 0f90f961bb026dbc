"""Published measurements, reproduced: ``python -m experiments.NAME`` from a checkout."""
