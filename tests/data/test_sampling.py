from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import Dataset

from src.data.sampling import CropSampler, Draw, EvaluationSampler, ResumableLoader
from src.errors import UserError


def epochs(sampler: CropSampler, count: int) -> list[list[Draw]]:
    drawn = []
    for epoch in range(count):
        sampler.set_epoch(epoch)
        drawn.append(list(sampler))
    return drawn


class TestCropSampler:
    def test_every_photo_once_in_every_turn(self) -> None:
        stream = [draw for epoch in epochs(CropSampler(7, 6, 2, seed=0), 7) for draw in epoch]
        assert [draw.number for draw in stream] == list(range(42))
        for turn in range(6):
            assert sorted(draw.photo for draw in stream[7 * turn : 7 * turn + 7]) == list(range(7))

    def test_turns_and_seeds_differ(self) -> None:
        first, second = (
            tuple(draw.photo for draw in epoch) for epoch in epochs(CropSampler(50, 50, 1, seed=0), 2)
        )
        (other,) = (
            tuple(draw.photo for draw in epoch) for epoch in epochs(CropSampler(50, 50, 1, seed=1), 1)
        )
        assert len({first, second, other}) == 3

    @settings(max_examples=60, deadline=None)
    @given(st.integers(1, 9), st.integers(1, 40), st.integers(1, 4), st.integers(1, 4), st.integers(0, 3))
    def test_ranks_share_the_global_batch(
        self, photos: int, samples: int, batch: int, ranks: int, epoch: int
    ) -> None:
        if samples < batch * ranks:
            with pytest.raises(ValueError, match="do not fill one step"):
                CropSampler(photos, samples, batch, seed=0, ranks=ranks)
            return
        alone = CropSampler(photos, samples, batch * ranks, seed=3)
        together = [CropSampler(photos, samples, batch, seed=3, rank=r, ranks=ranks) for r in range(ranks)]
        for sampler in (alone, *together):
            sampler.set_epoch(epoch)
        interleaved = [draw for draws in zip(*together, strict=True) for draw in draws]
        assert interleaved == list(alone)
        assert len(list(alone)) == len(alone) == samples // (batch * ranks) * batch * ranks
        assert all(len(sampler) == len(list(sampler)) for sampler in together)

    def test_more_samples_than_photos(self) -> None:
        ((*draws,),) = epochs(CropSampler(3, 12, 4, seed=0), 1)
        assert Counter(draw.photo for draw in draws) == {0: 4, 1: 4, 2: 4}
        assert len({draw.number for draw in draws}) == 12

    def test_starts_after_consumed_batches(self) -> None:
        sampler = CropSampler(10, 12, 2, seed=0, rank=1, ranks=2)
        sampler.set_epoch(3)
        whole = list(sampler)
        sampler.first_batch = 2
        assert list(sampler) == whole[4:]


class TestEvaluationSampler:
    @pytest.mark.parametrize("ranks", [1, 2, 3, 7])
    def test_every_photo_exactly_once(self, ranks: int) -> None:
        samplers = [EvaluationSampler(7, rank, ranks) for rank in range(ranks)]
        assert sorted(index for sampler in samplers for index in sampler) == list(range(7))
        assert [len(list(sampler)) for sampler in samplers] == [len(sampler) for sampler in samplers]

    def test_more_ranks_than_photos(self) -> None:
        with pytest.raises(ValueError, match="3 devices cannot share 2"):
            EvaluationSampler(2, 0, 3)


def test_an_epoch_has_whole_steps() -> None:
    sampler = CropSampler(30, 30, 4, seed=0, accumulated=4)
    assert sampler.batches == 4
    with pytest.raises(UserError, match=r"do not fill one step: 16 x a batch of 4"):
        CropSampler(30, 30, 4, seed=0, accumulated=16)


class Numbers(Dataset[torch.Tensor]):
    def __getitem__(self, draw: Draw) -> torch.Tensor:
        return torch.tensor(draw.number)


def loader(workers: int) -> ResumableLoader:
    sampler = CropSampler(5, 12, 2, seed=0)
    return ResumableLoader(
        Numbers(), batch_size=2, sampler=sampler, num_workers=workers, persistent_workers=workers > 0
    )


class TestResumableLoader:
    @pytest.mark.parametrize("workers", [0, 2])
    def test_continues_at_the_next_unseen_batch(self, workers: int) -> None:
        interrupted = loader(workers)
        interrupted.sampler.set_epoch(4)
        iterator = iter(interrupted)
        seen = [next(iterator).tolist() for _ in range(2)]
        state = interrupted.state_dict()

        resumed = loader(workers)
        resumed.load_state_dict(state)
        resumed.sampler.set_epoch(4)
        assert resumed.state_dict() == state
        rest = [batch.tolist() for batch in resumed]
        assert seen + rest == [[48 + 2 * i, 49 + 2 * i] for i in range(6)]
        assert len(resumed) == 6  # the length stays that of a whole epoch

        resumed.sampler.set_epoch(5)
        assert next(iter(resumed)).tolist() == [60, 61]

    def test_other_numbers_of_devices_are_told(self, caplog: pytest.LogCaptureFixture) -> None:
        state = loader(0).state_dict()
        loader(0).load_state_dict(state)
        assert not caplog.records
        four = ResumableLoader(
            Numbers(), batch_size=2, sampler=CropSampler(5, 12, 2, seed=0, rank=1, ranks=4)
        )
        four.load_state_dict(state)
        assert "were 2 and are 8 now" in caplog.text

    def test_a_finished_epoch_is_not_repeated(self) -> None:
        finished = loader(0)
        assert len(list(finished)) == 6
        resumed = loader(0)
        resumed.load_state_dict(finished.state_dict())
        resumed.sampler.set_epoch(1)
        assert [batch.tolist() for batch in resumed] == [[12 + 2 * i, 13 + 2 * i] for i in range(6)]
