"""Losses under the names, argument order and defaults of the projects that people come from.

Losses are computed in fp32 for fp16 and bf16 inputs and their gradients are finite where the
originals divide by zero; apart from that they return what the originals return.
"""

from itm_kernels.compat import imc, open_clip, vsepp

__all__ = ["imc", "open_clip", "vsepp"]
