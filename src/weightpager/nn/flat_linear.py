"""`FlatLinear`: a dense linear layer that doesn't mind where its input was cut from."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import linear


class FlatLinear(nn.Linear):
    """`torch.nn.Linear`, applied to rows.

    After a prompt transformers gives the head a slice, the last token's hidden state. By its strides torch takes that
    for a batch of matrices, and copies the whole weight for it: half a second for 150,000 tokens of 896 features.
    """

    @classmethod
    def of(cls, layer: nn.Linear) -> FlatLinear:
        """The same layer: its parameters are shared."""
        made = cls.__new__(cls)
        made.__dict__.update(layer.__dict__)
        return made

    def forward(self, x: Tensor) -> Tensor:
        """``[..., in_features]`` to ``[..., out_features]``."""
        rows = linear(x.reshape(-1, x.shape[-1]), self.weight, self.bias)
        return rows.view(*x.shape[:-1], self.out_features)
