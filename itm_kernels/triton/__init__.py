"""Triton kernels: one file per operator, found by its name, imported when first needed."""
