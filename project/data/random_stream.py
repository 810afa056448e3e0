"""Counter-based random numbers: SplitMix64, the same for any number of workers and devices."""

MASK = 2**64 - 1


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
