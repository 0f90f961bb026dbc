"""Triton kernels, each beside the naive form that its tests compare it with."""

import os

# Products and sums stay one instruction: Triton 3.9 asks for a choice, and 3.10 will choose otherwise.
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
