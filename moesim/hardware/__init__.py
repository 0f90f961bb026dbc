"""What the hardware makes of the work: seconds of kernels and of transfers."""
