"""Settings of the whole suite."""

import torch

# Tests are small: threads would only wait for one another, most of all on a busy machine.
torch.set_num_threads(1)
