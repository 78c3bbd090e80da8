"""The predicted cost of every loss on a GPU, from launches counted without one.

`trace.py` runs a whole loss, forward and backward, on meta tensors and notes every launch;
`kernels.py` and `aten.py` count what a launch multiplies, moves and computes; `rates.py` says how
fast an H100 and an H200 do that, `predict.py` makes milliseconds of both. Nothing is measured.
`python -m benchmarks.cost_sheet` (`make cost-sheet`) compares with the committed sheet.
"""
