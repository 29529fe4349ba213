"""Figure 5 of MESM: how much of a text lies in the space of a segment."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vmr_zoo.metrics.subspace import subspace_similarity


def naive(text: np.ndarray, segment: np.ndarray) -> list[float]:
    """The cosines of the angles between the spaces, one pair of singular vectors after the other."""
    top = np.linalg.eigh(text.T @ text)[1][:, ::-1][:, : len(text)]
    every = np.linalg.eigh(segment.T @ segment)[1][:, ::-1][:, : len(segment)]
    found = []
    for i in range(1, len(text) + 1):
        total = sum(float(top[:, a] @ every[:, b]) ** 2 for a in range(i) for b in range(len(segment)))
        found.append(total / min(i, len(segment)))
    return found


@pytest.mark.parametrize(("words", "clips"), [(5, 3), (3, 6), (1, 1)])
def test_it_equals_a_naive_sum_over_singular_vectors(words, clips):
    rng = np.random.default_rng(words)
    text, segment = rng.standard_normal((words, 9)), rng.standard_normal((clips, 9))
    got = subspace_similarity(torch.tensor(text), torch.tensor(segment))
    np.testing.assert_allclose(got.numpy(), naive(text, segment), atol=1e-10)


def test_it_is_one_inside_and_zero_across_and_ignores_lengths_and_repeated_rows():
    eye = torch.eye(6)
    torch.testing.assert_close(subspace_similarity(3 * eye[:2], eye[:4]), torch.ones(2, dtype=torch.float64))
    assert subspace_similarity(eye[:2], eye[2:5]).abs().max() < 1e-12
    twice = torch.cat((eye[:1], eye[:1]))
    assert len(subspace_similarity(twice, eye)) == 1
    assert len(subspace_similarity(eye, eye[:0])) == 0
    assert len(subspace_similarity(eye[:0], eye)) == 0
