from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.utils import instantiate

from vmr_zoo.blocks.narration import pool_clips
from vmr_zoo.config.compose import compose
from vmr_zoo.losses.boundary import overlap_threshold, span_to_indices
from vmr_zoo.methods.emb import EMB
from vmr_zoo.parity.case import Case
from vmr_zoo.parity.check import build, check

GOLDEN = Path(__file__).parents[2].parent / "shared" / "golden"
CASES = [GOLDEN / name for name in ("emb_a.npz", "emb_b.npz") if (GOLDEN / name).exists()]
needs_golden = pytest.mark.skipif(not CASES, reason="the golden cases in ../shared/golden are absent")


@pytest.fixture(scope="module")
def aux():
    return np.load(GOLDEN / "emb_aux.npz", allow_pickle=False)


@needs_golden
@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_the_released_variant_equals_the_released_code(path):
    cfg = compose("parity", ["method=emb", f"case={path}"])
    released, case = instantiate(cfg.released), Case(path)
    verdicts = check(released, build(cfg, released, case.options, case.group("param")), case)
    assert len(verdicts) > 500
    assert [verdict for verdict in verdicts if not verdict.passed] == []


@needs_golden
@pytest.mark.parametrize("rows", [57, 128, 129, 150, 200, 300, 500, 1000])
def test_long_videos_are_pooled_as_in_the_released_code(aux, rows):
    longest = 1000  # all in one padded width, so that padding takes part in nothing
    video = torch.zeros(2, longest, 3)
    video[0, :rows] = torch.from_numpy(aux[f"downsample/in_{rows}"])
    video[1] = 7.0
    mask = torch.arange(longest) < torch.tensor([[rows], [longest]])
    pooled, valid, snippet = pool_clips(video, mask, 128, "mean", drop_last=True)
    expected = torch.from_numpy(aux[f"downsample/out_{rows}"])
    torch.testing.assert_close(pooled[0, : len(expected)], expected, atol=1e-5, rtol=1e-5)
    assert valid[0].sum() == len(expected)
    assert (pooled[0, len(expected) :] == 0).all()
    assert (snippet[0, :rows].diff() >= 0).all()


@needs_golden
def test_times_become_indices_as_in_the_released_code(aux):
    units = aux["time_to_index/num_units"]
    duration = torch.from_numpy(aux["time_to_index/duration"])
    span = torch.from_numpy(np.stack([aux["time_to_index/start_time"], aux["time_to_index/end_time"]], 1))
    mask = torch.arange(units.max()) < torch.from_numpy(units)[:, None]
    indices = span_to_indices(span / duration[:, None], mask)
    expected = np.stack([aux["time_to_index/start_index"], aux["time_to_index/end_index"]], 1)
    assert indices.tolist() == expected.tolist()
    seconds = (indices + torch.tensor([0, 1])) / torch.from_numpy(units)[:, None] * duration[:, None]
    times = np.stack([aux["index_to_time/start_time"], aux["index_to_time/end_time"]], 1)
    np.testing.assert_allclose(seconds.numpy(), times, atol=1e-4)


@needs_golden
@pytest.mark.parametrize(("key", "epochs"), [("epoch_0_to_99_of_100", 100), ("epoch_0_to_9_of_10", 10)])
def test_the_overlap_threshold_falls_as_in_the_released_code(aux, key, epochs):
    ours = [overlap_threshold(epoch / epochs) for epoch in range(epochs)]
    np.testing.assert_allclose(ours, aux[f"threshold/{key}"], atol=1e-9)


@needs_golden
def test_the_learning_rate_decays_as_in_the_released_code(aux):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=5e-4)
    schedule = EMB.linear_decay(optimizer, 100)
    rates = []
    for _ in range(100):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    expected = aux["lr/100_total_steps"]
    np.testing.assert_allclose(np.array(rates) / rates[0], expected / expected[0], atol=1e-6)


def test_the_threshold_follows_the_trainer():
    class Trainer:
        max_epochs, current_epoch = 10, 5

    cfg = compose("train", ["data=charades_cd", "features=action_labels", "method=emb", "method.dim=16"])
    method = instantiate(cfg.method)
    assert method.progress() == 0.0
    method._trainer = Trainer()
    assert method.progress() == 0.5
    assert overlap_threshold(method.progress()) == pytest.approx(0.75)


@pytest.mark.parametrize(
    "override", ["branch.order=x", "branch.unit=x", "boundary.end_set=x", "proposals=null"]
)
def test_an_impossible_setting_is_refused(override):
    cfg = compose("train", ["data=charades_cd", "features=action_labels", "method=emb", f"method.{override}"])
    with pytest.raises(Exception, match=r"Unknown|turn off both"):
        instantiate(cfg.method)
