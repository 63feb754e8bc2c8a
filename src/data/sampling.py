"""Which photo a training step sees, on every rank, worker and after every resume.

Training draws crops from one endless stream: permutations of all photos, one after the other. Draw number n
shows a photo and a crop that depend on (seed, n) alone, so a run gives the same crops with any number of
workers, and the same global batches on any number of ranks. An epoch is a stretch of the stream; it may be
shorter or longer than one pass over the photos, so that validation can come at any interval.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import DataLoader, DistributedSampler

from src.errors import UserError

log = logging.getLogger(__name__)


class Draw(NamedTuple):
    """One crop to make: the number of the draw in the stream, and the photo it shows."""

    number: int
    photo: int


# Both samplers derive from DistributedSampler: Lightning replaces every other one when there are several
# ranks.
class CropSampler(DistributedSampler):
    """The draws of one rank in one epoch.

    Rank r of R takes every R-th draw, so the global batch of a step is a contiguous stretch of the stream.

    Args:
        photos: number of photos.
        samples_per_epoch: crops per epoch over all ranks, rounded down to whole global batches.
        batch_size: crops per step and rank.
        seed: of the permutations.
        rank: this process.
        ranks: number of processes.
        accumulated: batches of a step; an epoch has whole steps.

    Raises:
        ValueError: the epoch does not fill one step.
    """

    def __init__(
        self,
        photos: int,
        samples_per_epoch: int,
        batch_size: int,
        seed: int,
        rank: int = 0,
        ranks: int = 1,
        accumulated: int = 1,
    ) -> None:
        super().__init__(range(photos), num_replicas=ranks, rank=rank, seed=seed)  # type: ignore[arg-type]
        self.photos = photos
        self.batch_size = batch_size
        self.batches = samples_per_epoch // (batch_size * ranks * accumulated) * accumulated
        self.first_batch = 0  # batches of the epoch that were consumed before a resume
        if self.batches == 0:
            raise UserError(
                f"{samples_per_epoch} samples per epoch do not fill one step: {accumulated} x a batch of {batch_size}"
                f" crops on {ranks} device(s): lower the batch size or raise samples_per_epoch (it may exceed the "
                "number of photos)"
            )

    def __len__(self) -> int:
        return self.batches * self.batch_size

    def __iter__(self) -> Iterator[Draw]:
        epoch_length = len(self) * self.num_replicas
        start = self.epoch * epoch_length
        first = start + self.first_batch * self.batch_size * self.num_replicas + self.rank
        shown: tuple[int, list[int]] = (-1, [])  # a turn, one pass over the photos, and its order
        for number in range(first, start + epoch_length, self.num_replicas):
            turn, place = divmod(number, self.photos)
            if turn != shown[0]:
                shown = turn, np.random.default_rng([self.seed, turn]).permutation(self.photos).tolist()
            yield Draw(number, shown[1][place])


class EvaluationSampler(DistributedSampler):
    """Every photo exactly once over all ranks, so that no photo counts twice in a metric.

    Ranks differ by at most one photo. That is safe: in evaluation DDP synchronises buffers with the first
    forward only, and metrics at the end.

    Raises:
        ValueError: fewer photos than ranks; a rank without work would leave the others waiting.
    """

    def __init__(self, photos: int, rank: int = 0, ranks: int = 1) -> None:
        super().__init__(range(photos), num_replicas=ranks, rank=rank)  # type: ignore[arg-type]
        self.photos = photos
        if photos < ranks:
            raise UserError(f"{ranks} devices cannot share {photos} evaluation photos; use fewer devices")

    def __len__(self) -> int:
        return len(range(self.rank, self.photos, self.num_replicas))

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.rank, self.photos, self.num_replicas))


class ResumableLoader(DataLoader):
    """A DataLoader over a ``CropSampler`` that continues an interrupted epoch at the next unseen batch.

    Lightning stores ``state_dict()`` in checkpoints and restores it before the first batch. Batches that
    workers had prepared but training had not consumed are drawn again, identically.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._resume = {"epoch": 0, "batches": 0}
        self._position = dict(self._resume)

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        # A generator: it starts at the first batch, when Lightning has told the sampler which epoch this is.
        sampler = self.sampler
        if isinstance(sampler, CropSampler):  # Lightning's overfit_batches puts a sequential one in its place
            resumed = self._resume["epoch"] == sampler.epoch
            sampler.first_batch = self._resume["batches"] if resumed else 0
            self._position = {"epoch": sampler.epoch, "batches": sampler.first_batch}
        for batch in super().__iter__():
            self._position["batches"] += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Epoch, how many of its batches training has consumed, and crops of a batch on all devices."""
        return self._position | {"crops": self._crops()}

    def load_state_dict(self, state: dict[str, int]) -> None:
        then = state.get("crops", self._crops())
        if then != self._crops():
            log.warning(
                "a step's crops on all devices were %d and are %d now: the run goes on, with other crops",
                then,
                self._crops(),
            )
        self._resume = {key: state[key] for key in ("epoch", "batches")}
        self._position = dict(self._resume)

    def _crops(self) -> int:
        return (self.batch_size or 0) * getattr(self.sampler, "num_replicas", 1)
