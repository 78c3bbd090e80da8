"""Encoders in chunks: gradient caching (GradCache) as one autograd node.

`_inputs` slices, `_outputs` assembles, `_state` restores, `_wrappers` handles DDP and FSDP, and
`_node` runs the encoder in the forward and in the backward pass.
"""

from itm_kernels._chunked._api import chunked as chunked
