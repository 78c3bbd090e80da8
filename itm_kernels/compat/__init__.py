"""Losses under the names, argument order and defaults of the projects that people come from.

They compute what the originals compute, fp16 and bf16 in fp32; docs/coming_from.md lists every
difference.
"""

from itm_kernels.compat import imc, open_clip, vsepp

__all__ = ["imc", "open_clip", "vsepp"]
