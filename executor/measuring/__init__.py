"""What is measured: layers that run together or in turns, clocks, counts, microbenchmarks."""
