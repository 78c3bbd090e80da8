"""Drop-in losses with the names, argument order and defaults of other projects.

Results match those of the originals; fp16 and bf16 are computed in fp32. docs/coming_from.md lists
every difference.
"""

from itm_kernels.compat import imc, open_clip, scan, sgraf, vsepp

__all__ = ["imc", "open_clip", "scan", "sgraf", "vsepp"]
