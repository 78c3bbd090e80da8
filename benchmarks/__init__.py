"""Every operator and loss against what a user would pick instead, and against the machine's limit.

`make bench` measures; `report.py` writes tables, `plots.py` pictures, both from the committed JSON.
"""
