"""Triton kernels and the operations that use them. Knows no model and no decoding."""
