"""Random draws over ranks: the same on all of them, or independent."""

import torch

from itm_kernels.distributed._side import Side


def like_first_rank(
    generator: torch.Generator | None, device: torch.device, side: Side
) -> torch.Generator:
    """Return a generator in the state of rank 0's.

    Where that is the state of this rank's generator, the generator itself is returned, so ranks
    with one seed advance alike. Generators in other states are not changed.

    Args:
        generator: None for the default generator of the device.
        device: of the draws.
        side: any rows of the batch.
    """
    own = generator or _default(device)
    state = own.get_state()
    first = side.from_first(state.to(device)).cpu()
    if torch.equal(first, state):
        return own
    copy = torch.Generator(own.device)
    copy.set_state(first)
    return copy


def of_this_rank(
    generator: torch.Generator | None, device: torch.device, side: Side
) -> torch.Generator:
    """Return a generator whose draws are independent of other ranks', even if these have one seed.

    Every rank draws one seed per rank, so generators in the same state advance alike. The seed is
    read on the host.
    """
    seeds = torch.randint(2**63 - 1, (side.size,), generator=generator, device=device)
    return torch.Generator(device).manual_seed(int(seeds[side.rank]))


def _default(device: torch.device) -> torch.Generator:
    if device.type != "cuda":
        return torch.default_generator
    index = torch.cuda.current_device() if device.index is None else device.index
    return torch.cuda.default_generators[index]
