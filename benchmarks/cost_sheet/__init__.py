"""The predicted cost of every loss on a GPU, computed without one.

`trace.py` runs a whole loss, forward and backward, on meta tensors and records every launch.
`kernels.py` and `aten.py` count the FLOP, bytes and instructions of a launch, `rates.py` states the
rates of an H100 and an H200, and `predict.py` turns both into milliseconds. Nothing is measured.
`python -m benchmarks.cost_sheet` (`make cost-sheet`) compares with the committed sheet.
"""
