"""Timings, each beside a rival in the same run. ``make bench`` prints them; docs/benchmarks.md keeps them."""
