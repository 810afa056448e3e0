"""Samplers: the order of the training samples, and the batches of an evaluation; random numbers by counter.

Samplers yield (epoch, index), so that the epoch reaches persistent workers too.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

Key = tuple[int, int]  # (epoch, index)
MASK = 2**64 - 1


class ShuffledSampler(Sampler[Key]):
    """Shuffles all samples by (seed, epoch) and gives each rank an equal number of them.

    The remaining samples are left out, others in each epoch: ranks must take the same number of steps.

    With `labels`, the class (length,) of each sample, an epoch keeps its length, but holds every class equally often
    (to one sample), repeating samples of rare classes evenly.
    """

    def __init__(
        self, length: int, seed: int = 0, rank: int = 0, world_size: int = 1, labels: np.ndarray | None = None
    ) -> None:
        self.length, self.seed, self.rank, self.world_size, self.epoch = length, seed, rank, world_size, 0
        self.members = [] if labels is None else [np.flatnonzero(labels == value) for value in np.unique(labels)]

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning at the start of each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length // self.world_size

    def __iter__(self) -> Iterator[Key]:
        epoch, rng = self.epoch, np.random.default_rng([self.seed, self.epoch])
        order = rng.permutation(self._balanced(rng) if self.members else self.length)
        for index in order[self.rank : len(self) * self.world_size : self.world_size].tolist():
            yield epoch, index

    def _balanced(self, rng: np.random.Generator) -> np.ndarray:
        """Equal numbers of each class; all samples of a class come once before one comes again."""
        counts = np.full(len(self.members), self.length // len(self.members))
        counts[rng.permutation(len(counts))[: self.length % len(counts)]] += 1
        chosen = []
        for members, count in zip(self.members, counts, strict=True):
            rounds = [rng.permutation(members) for _ in range(-(-count // len(members)))]
            chosen.append(np.concatenate(rounds)[:count])
        return np.concatenate(chosen)


class EvaluationBatches(Sampler[list[Key]]):
    """Every sample exactly once over all ranks, in batches of images of one size.

    Ranks may hold different numbers of samples: repeating samples to even them out would falsify metrics.
    """

    def __init__(self, shapes: Sequence[tuple[int, ...]], batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        by_shape: dict[tuple[int, ...], list[int]] = {}
        for index in range(rank, len(shapes), world_size):
            by_shape.setdefault(shapes[index], []).append(index)
        self.batches = [
            [(0, index) for index in indices[start : start + batch_size]]
            for indices in by_shape.values()
            for start in range(0, len(indices), batch_size)
        ]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[Key]]:
        return iter(self.batches)


def random_bits(stream: int, index: int) -> int:
    """The random 64-bit number at position `index` of a stream.

    Steele, Lea and Flood 2014 (Fast splittable pseudorandom number generators, OOPSLA): the state advances by a
    constant and is mixed. Creating a generator of NumPy takes as long as reading a crop.
    """
    state = stream + index * 0x9E3779B97F4A7C15 & MASK
    state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    state = (state ^ (state >> 27)) * 0x94D049BB133111EB & MASK
    return state ^ (state >> 31)


def random_stream(seed: int, epoch: int) -> int:
    """Start of the stream of an epoch, for `random_bits`."""
    return random_bits(random_bits(0, seed + 1), epoch + 1)
