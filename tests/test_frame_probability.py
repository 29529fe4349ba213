"""`vmr eval frame_probability=true`: the mean of BM-DETR's p inside and outside of the moments (Table 9)."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import pytest
import torch

from vmr_zoo.blocks.clips import clips_inside
from vmr_zoo.cli.main import main
from vmr_zoo.engine.frame_probability import FrameProbability


def naive(rows):
    """Table 9 by loops; rows of (probabilities of the clips, seconds per clip, moments in seconds)."""
    means = {True: [], False: []}
    for probabilities, clip, moments in rows:
        for side in (True, False):
            chosen = [
                p
                for i, p in enumerate(probabilities)
                if any(math.floor(s / clip) <= i < max(e // clip, s // clip + 1) for s, e in moments) == side
            ]
            if chosen:
                means[side].append(sum(chosen) / len(chosen))
    return [sum(means[side]) / len(means[side]) for side in (True, False)]


def test_means_equal_the_loops():
    rows = [
        ([0.9, 0.8, 0.1, 0.2, 0.7], 2.0, [(0.0, 4.0), (8.0, 10.0)]),
        ([0.5, 0.25, 0.75], 3.0, [(3.5, 5.0)]),  # inside one clip
        ([0.3, 0.6], 1.0, [(0.0, 2.0)]),  # nothing outside
    ]
    longest = max(len(p) for p, _, _ in rows)
    probability, mask = torch.full((3, longest), 0.99), torch.zeros(3, longest, dtype=torch.bool)
    spans, span_mask = torch.zeros(3, 2, 2), torch.zeros(3, 2, dtype=torch.bool)
    for i, (values, clip, moments) in enumerate(rows):
        probability[i, : len(values)], mask[i, : len(values)] = torch.tensor(values), True
        spans[i, : len(moments)] = torch.tensor(moments) / (clip * len(values))
        span_mask[i, : len(moments)] = True
    batch = {
        "spans": spans,
        "span_mask": span_mask,
        "video_mask": mask,
        "clip_seconds": torch.tensor([clip for _, clip, _ in rows]),
        "duration": torch.tensor([clip * len(values) for values, clip, _ in rows]),
    }
    measure = FrameProbability()
    method = SimpleNamespace(
        clips_inside=lambda batch: clips_inside(
            batch["spans"], batch["span_mask"], batch["duration"], batch["clip_seconds"], batch["video_mask"]
        )
    )
    for part in (slice(0, 1), slice(1, 3)):
        cut = {key: value[part] for key, value in batch.items()}
        measure.add(method, {"details": {"frame_probability": probability[part]}}, cut)
    inside, outside = naive(rows)
    expected = {"p_inside": inside, "p_outside": outside, "p_difference": inside - outside}
    assert measure.metrics() == pytest.approx(expected)


def test_eval_measures_with_the_negatives_of_the_split_and_leaves_the_predictions(tmp_path):
    run = tmp_path / "run"
    small = ["method.network.dim=16", "method.network.heads=2", "method.network.feedforward_dim=16"]
    small += ["data.protocol.train_videos=40", "data.protocol.test_videos=20"]
    train = ["train", "data=synthetic", "method=bm_detr", f"run={run}", "trainer.max_epochs=1", *small]
    assert main([*train, "data.negatives.similarity_below=null", "data.negatives.when_none=other_video"]) == 0
    name = json.loads((run / "predictions.jsonl").read_text().splitlines()[0])["split"]
    for _ in range(2):
        assert main(["eval", f"run={run}", f"split={name}", "frame_probability=true"]) == 0
    change = "change={method.background.negatives:false}"
    assert main(["eval", f"run={run}", f"split={name}", "frame_probability=true", change]) == 0
    assert main(["eval", f"run={run}", f"split={name}"]) == 0
    found = [json.loads((run / f"eval/{name}-00{i}/metrics.json").read_text())[name] for i in range(1, 5)]
    keys = ("p_inside", "p_outside", "p_difference")
    with_negatives, again, without, plain = ([one.pop(key, None) for key in keys] for one in found)
    assert found[0] == found[2] == found[3]  # the predictions use no negatives
    assert with_negatives == again
    assert plain == [None] * 3
    # p = P(f | Q+) (1 - P(f | Q-)) is smaller than P(f | Q+) on every clip.
    assert 0 < with_negatives[0] < without[0] < 1
    assert 0 < with_negatives[1] < without[1] < 1
