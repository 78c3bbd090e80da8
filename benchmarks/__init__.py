"""Every operator and loss, compared with its alternatives and with the machine's limit.

`make bench` measures. `report.py` writes tables and `plots.py` figures from the committed JSON.
"""
