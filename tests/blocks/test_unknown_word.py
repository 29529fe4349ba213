"""One trained vector stands for all words whose features are zeros."""

import torch

from vmr_zoo.blocks.unknown_word import UnknownWord


def test_only_valid_zero_rows_take_the_vector() -> None:
    words = torch.tensor([[[1.0, 0.0], [0.0, 0.0], [0.0, 0.0]]])
    mask = torch.tensor([[True, True, False]])
    unknown = UnknownWord(2)
    out = unknown(words, mask)
    assert torch.equal(out[0, 1], unknown.vector[0])
    assert torch.equal(out[:, [0, 2]], words[:, [0, 2]])
    out.sum().backward()
    assert torch.equal(unknown.vector.grad, torch.ones(1, 2))
