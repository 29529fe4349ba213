from itertools import chain

import numpy as np
import pytest

from vmr_zoo.data.batches.sampling import EpochBatchSampler, group_by_video, uniform

LENGTHS = np.random.default_rng(0).integers(5, 60, 203)
VIDEO = np.random.default_rng(1).integers(0, 60, 203)
ROWS = list(np.arange(203)[:, None])


def flat(batches: list[list[int]]) -> list[int]:
    return list(chain.from_iterable(batches))


def rows_of(sampler: EpochBatchSampler, epoch: int = 0) -> list[list[int]]:
    sampler.set_epoch(epoch)
    batches = list(sampler)
    assert len(batches) == len(sampler)
    assert all(batch.epoch == (None if sampler.fixed_order else epoch) for batch in batches)
    return [batch.rows.tolist() for batch in batches]


@pytest.mark.parametrize("bucket_batches", [1, 4])
def test_every_row_comes_once_per_epoch_in_an_order_fixed_by_seed_and_epoch(bucket_batches):
    sampler = EpochBatchSampler(ROWS, LENGTHS, 16, seed=3, bucket_batches=bucket_batches)
    first, second = rows_of(sampler, 0), rows_of(sampler, 1)
    assert sorted(flat(first)) == sorted(flat(second)) == list(range(203))
    assert first != second
    again = EpochBatchSampler(ROWS, LENGTHS, 16, seed=3, bucket_batches=bucket_batches)
    assert rows_of(again, 1) == second
    assert rows_of(EpochBatchSampler(ROWS, LENGTHS, 16, seed=4, bucket_batches=bucket_batches), 1) != second


def test_bucketing_reduces_padding_but_keeps_batches_and_their_order_mixed():
    def padded(bucket_batches: int) -> int:
        batches = rows_of(EpochBatchSampler(ROWS, LENGTHS, 16, seed=0, bucket_batches=bucket_batches))
        return sum(LENGTHS[rows].max() * len(rows) for rows in batches)

    assert padded(13) < 0.7 * padded(1)
    batches = rows_of(EpochBatchSampler(ROWS, LENGTHS, 16, seed=0, bucket_batches=13))
    longest = [LENGTHS[rows].max() for rows in batches]
    assert longest != sorted(longest)


def test_evaluation_keeps_the_order_of_the_file_in_every_epoch():
    sampler = EpochBatchSampler(ROWS, LENGTHS, 50)
    assert flat(rows_of(sampler, 0)) == list(range(203))
    assert rows_of(sampler, 7) == rows_of(sampler, 0)


def test_no_batch_repeats_a_video_when_rows_must_be_distinct():
    sampler = EpochBatchSampler(ROWS, LENGTHS, 16, seed=0, unique_video=VIDEO)
    batches = rows_of(sampler)
    assert all(len(set(VIDEO[rows])) == len(rows) for rows in batches)
    plain = rows_of(EpochBatchSampler(ROWS, LENGTHS, 16, seed=0))
    # Of a batch without the rule, exactly the first row of each video remains.
    for kept, rows in zip(batches, plain, strict=True):
        seen: set[int] = set()
        assert kept == [row for row in rows if not (VIDEO[row] in seen or seen.add(VIDEO[row]))]


def test_a_resumed_epoch_starts_at_its_next_batch_and_only_that_epoch():
    sampler = EpochBatchSampler(ROWS, LENGTHS, 16, seed=0)
    whole, following = rows_of(sampler, 2), rows_of(sampler, 3)
    sampler.resume_at(2, 5)
    assert [batch.rows.tolist() for batch in sampler] == whole[5:]
    assert rows_of(sampler, 3) == following


def test_processes_share_an_epoch_in_equal_numbers_of_batches():
    shares = []
    for rank in range(3):
        sampler = EpochBatchSampler(ROWS, LENGTHS, 16, seed=0)  # 13 batches
        sampler.num_replicas, sampler.rank = 3, rank
        shares.append(rows_of(sampler, 1))
    assert {len(share) for share in shares} == {5}
    assert set(chain.from_iterable(chain.from_iterable(shares))) == set(range(203))
    evaluated = []
    for rank in range(3):
        sampler = EpochBatchSampler(ROWS, LENGTHS, 16)
        sampler.num_replicas, sampler.rank = 3, rank
        evaluated += flat(rows_of(sampler))
    assert sorted(evaluated) == list(range(203))


def test_groups_hold_whole_videos_or_at_most_so_many_rows():
    groups = group_by_video(VIDEO, None, 0)
    assert [VIDEO[group[0]] for group in groups] == list(dict.fromkeys(VIDEO.tolist()))
    assert all(group.tolist() == np.flatnonzero(VIDEO[group[0]] == VIDEO).tolist() for group in groups)

    cut = group_by_video(VIDEO, 2, 0)
    assert max(map(len, cut)) == 2
    assert sorted(np.concatenate(cut)) == list(range(203))
    assert all(len(set(VIDEO[group])) == 1 for group in cut)
    assert [g.tolist() for g in group_by_video(VIDEO, 2, 0)] == [g.tolist() for g in cut]
    assert [g.tolist() for g in group_by_video(VIDEO, 2, 1)] != [g.tolist() for g in cut]


def test_random_numbers_differ_between_epochs_and_purposes_only():
    draws = [uniform(0, 0, 1, 4), uniform(0, 1, 1, 4), uniform(0, 0, 2, 4), uniform(1, 0, 1, 4)]
    assert len({tuple(d) for d in draws}) == 4
    assert tuple(uniform(0, 0, 1, 4)) == tuple(draws[0])
