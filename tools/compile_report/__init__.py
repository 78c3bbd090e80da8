"""Reports of what the GPU compilers make of the kernels, produced without a GPU."""
