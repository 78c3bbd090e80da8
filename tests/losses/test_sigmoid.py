"""The sigmoid loss's formula at logits where softplus is not exact."""

import torch

from itm_kernels import reference


def test_formula_of_the_sigmoid_is_exact_at_large_logits() -> None:
    """-log sigmoid(-z) = z + log(1 + e^-z), which is z + 1e-11 at 25."""
    x, scale = torch.eye(2, dtype=torch.float64), torch.tensor(25.0, dtype=torch.float64)
    loss = reference.sigmoid(x, x.flip(0), scale, scale * 0, None, None, None)
    wanted = 25 + torch.tensor(-25.0).double().exp().log1p() + torch.tensor(2.0).double().log()
    torch.testing.assert_close(loss, wanted.expand(2), rtol=1e-15, atol=0)
