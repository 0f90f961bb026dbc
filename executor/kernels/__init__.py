"""Triton kernels, each beside the naive form that its tests compare it with."""
