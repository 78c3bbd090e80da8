"""Checks that need a GPU: `python -m tools.gpu_check` runs them all, one step per module."""
