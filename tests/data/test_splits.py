"""No group stands in two splits, and nothing but the seed and the names decides which goes where."""

import random
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from project.data.config import DatasetConfig, SplitConfig
from project.data.sources import Sample
from project.data.splits import split_samples
from project.errors import UserError


def samples_of(*groups: str) -> list[Sample]:
    """One sample per entry."""
    return [Sample(f"{group}/{i:04d}", group, {}) for i, group in enumerate(groups)]


def split(samples: list[Sample], **options) -> dict[str, list[Sample]]:
    return split_samples(samples, SplitConfig(**options), lambda _: (100, 200))


def ids(parts: dict[str, list[Sample]]) -> dict[str, list[str]]:
    return {name: [s.id for s in samples] for name, samples in parts.items()}


shares = st.sampled_from([(0.7, 0.15, 0.15), (0.5, 0.25, 0.25), (0.98, 0.01, 0.01)])
sizes_of_groups = st.lists(st.integers(1, 12), min_size=3, max_size=25)


@settings(max_examples=60, deadline=None)
@given(sizes_of_groups, st.integers(0, 2**32), shares)
def test_groups_stay_together_and_nothing_is_lost(sizes, seed, fractions):
    samples = samples_of(*(f"g{i}" for i, size in enumerate(sizes) for _ in range(size)))
    wanted = dict(zip(("train", "val", "test"), fractions, strict=True))
    parts = split(samples, seed=seed, fractions=wanted)
    groups = [{s.group for s in part} for part in parts.values()]
    assert all(groups)
    assert sum(map(len, groups)) == len(set().union(*groups)) == len(sizes)
    assert sorted(s.id for part in parts.values() for s in part) == sorted(s.id for s in samples)
    for name, part in parts.items():
        assert [s.id for s in part] == sorted(s.id for s in part)
        # A group is the grain of the division, and the last ones fill what would stay empty.
        assert abs(len(part) - wanted[name] * len(samples)) <= 2 * max(sizes)


def test_fractions_are_met_where_groups_are_small():
    parts = split(samples_of(*(f"g{i}" for i in range(200))))
    assert {name: len(part) for name, part in parts.items()} == {"train": 140, "val": 30, "test": 30}


def test_same_seed_same_split_whatever_the_state_of_the_world():
    samples = samples_of(*(f"g{i % 20}" for i in range(60)))
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    before = split(samples, seed=3)
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    shuffled = samples.copy()
    random.shuffle(shuffled)
    assert ids(split(shuffled, seed=3)) == ids(before)


def test_drawing_a_split_leaves_the_global_random_state():
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    states = random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    split(samples_of(*"abcdef"))
    assert (random.getstate(), np.random.get_state()[1].tolist()) == states  # noqa: NPY002


def test_the_split_of_seed_0_never_changes():
    """Published results name a seed: a change of this table breaks them."""
    parts = split(samples_of(*"abcdefghij"))
    groups = {name: "".join(s.group for s in part) for name, part in parts.items()}
    assert groups == {"train": "abdfghj", "val": "ei", "test": "c"}


def test_another_seed_is_another_split():
    samples = samples_of(*(f"g{i}" for i in range(30)))
    assert len({tuple(ids(split(samples, seed=seed))["test"]) for seed in range(10)}) == 10


def test_every_split_gets_something_from_as_many_groups_as_splits():
    for seed in range(20):
        parts = split(samples_of(*"aaaaaaaaaaaabc"), seed=seed, fractions={"train": 0.98, "val": 0.01, "test": 0.01})
        assert all(parts.values())


def test_a_split_of_share_0_does_not_exist():
    assert set(split(samples_of(*"abcd"), fractions={"train": 0.5, "val": 0.5, "test": 0})) == {"train", "val"}
    parts = split(samples_of("a"), by="place", fractions={"train": 0.5, "val": 0.5, "test": 0})
    assert set(parts) == {"train", "val"}


@pytest.mark.parametrize("groups", ["a", "aab"])
def test_too_few_groups(groups):
    with pytest.raises(UserError, match=r"at least 3 groups.*\n.*- a(.|\n)*by: place"):
        split(samples_of(*groups))


@pytest.mark.parametrize("fractions", [{"train": 0.7, "val": 0.7}, {"train": 1.5, "val": -0.5}, {"train": 0.5}])
@pytest.mark.parametrize("by", ["group", "place"])
def test_fractions_that_do_not_add_up(fractions, by):
    with pytest.raises(UserError, match="add up to 1"):
        split(samples_of(*"abcd"), by=by, fractions=fractions)


@pytest.mark.parametrize(
    "options",
    [
        {"fractions": {"val": 1.0}},
        {"fractions": {"train": 0.0, "val": 1.0}},
        {"regions": {"val": [0, 9]}},
        {"fractions": {"train": 0.5, "valid": 0.5}},
        {"by": "place", "regions": {"train": [0, 5], "dev": [5, 9]}},
    ],
)
def test_config_refuses_unknown_splits_and_no_training(options):
    with pytest.raises(UserError, match="split"):
        DatasetConfig("raw", {"a": "{id}.tif"}, split=SplitConfig(**options))


@settings(max_examples=100, deadline=None)
@given(st.integers(30, 4000), st.integers(0, 9), st.sampled_from(["x", "y"]), st.integers(20, 60), st.integers(10, 20))
def test_places_are_apart_by_the_gap_and_cover_the_rest(length, gap, axis, train, val):
    fractions = {"train": train / 100, "val": val / 100, "test": 1 - train / 100 - val / 100}
    size = (8, length) if axis == "x" else (length, 8)
    config = SplitConfig(by="place", axis=axis, gap=gap, fractions=fractions)
    parts = split_samples(samples_of("a", "b"), config, lambda _: size)
    windows = {name: part[0].window for name, part in parts.items()}
    assert all(s.window == windows[name] for name, part in parts.items() for s in part)
    along = [w[2:] if axis == "x" else w[:2] for w in windows.values()]
    assert {w[:2] if axis == "x" else w[2:] for w in windows.values()} == {(0, 8)}
    assert (along[0][0], along[-1][1]) == (0, length)
    assert [b[0] - a[1] for a, b in pairwise(along)] == [gap, gap]
    free = length - 2 * gap
    for (start, stop), fraction in zip(along, fractions.values(), strict=True):
        assert abs(stop - start - fraction * free) <= 1


# --- given splits ---


def given_samples(**groups: str) -> list[Sample]:
    """Group -> its given splits, one letter for each sample: t(rain), v(al), e(test) or - for none."""
    names = {"t": "train", "v": "val", "e": "test", "-": None}
    return [
        Sample(f"{group}/{i:04d}", group, {}, split=names[letter])
        for group, letters in groups.items()
        for i, letter in enumerate(letters)
    ]


def groups_of(parts: dict[str, list[Sample]]) -> dict[str, set[str]]:
    return {name: {s.group for s in samples} for name, samples in parts.items()}


def test_given_splits_are_kept():
    samples = given_samples(a="ttt", b="v", c="ee", d="t")
    for seed in range(5):
        parts = split(samples, seed=seed, fractions={"train": 0.1, "val": 0.9})
        assert groups_of(parts) == {"train": {"a", "d"}, "val": {"b"}, "test": {"c"}}
        assert list(parts) == ["train", "val", "test"]


def test_the_rest_is_divided_by_fractions_among_all_splits():
    free = {f"f{i:02d}": "-" for i in range(20)}
    parts = split(given_samples(a="t" * 50, b="e" * 50, **free), fractions={"train": 0.5, "val": 0.3, "test": 0.2})
    assert {name: len(part) for name, part in parts.items()} == {"train": 60, "val": 6, "test": 54}
    alone = split(given_samples(**free), fractions={"train": 0.5, "val": 0.3, "test": 0.2})
    for name, groups in groups_of(alone).items():
        assert groups <= groups_of(parts)[name]


def test_samples_without_a_split_follow_their_group():
    parts = split(given_samples(a="--e-", b="t", c="v", d="-", e="-", f="-"))
    assert [s.id for s in parts["test"] if s.group == "a"] == ["a/0000", "a/0001", "a/0002", "a/0003"]


def test_val_is_taken_from_given_train_where_nothing_else_could_be_val():
    samples = given_samples(**{f"g{i:03d}": "t" for i in range(100)}, z="eeeee")
    parts = split(samples)
    assert {name: len(part) for name, part in parts.items()} == {"train": 82, "val": 18, "test": 5}  # 0.7 : 0.15
    assert groups_of(parts)["test"] == {"z"}
    parts = split(samples, fractions={"train": 0.9, "val": 0.1})
    assert {name: len(part) for name, part in parts.items()} == {"train": 90, "val": 10, "test": 5}
    assert set(split(samples, fractions={"train": 1.0})) == {"train", "test"}
    free = given_samples(**{f"g{i:03d}": "t" for i in range(9)}, x="-", y="-", z="-")
    parts = split(free, fractions={"train": 0.4, "val": 0.3, "test": 0.3})
    assert len(groups_of(parts)["train"] & {s.group for s in free if s.split}) == 9


def test_val_from_given_train_keeps_groups_together():
    samples = given_samples(**{f"g{i}": "tttt" for i in range(10)}, z="e")
    groups = groups_of(split(samples))
    assert not groups["train"] & groups["val"]
    assert groups["val"]


def test_groups_in_two_given_splits_are_all_listed():
    with pytest.raises(UserError, match=r"leak(.|\n)*- a: test, train\n  - c: train, val\n"):
        split(given_samples(a="te", b="tt", c="vt", d="e"))


def test_given_splits_without_training():
    with pytest.raises(UserError, match="no sample is left for training"):
        split(given_samples(a="v", b="e"))


def test_given_splits_and_places():
    with pytest.raises(UserError, match=r"by: place(.|\n)*a/0000: train\n  - b/0001: test"):
        split(given_samples(a="t", b="-e"), by="place")


def test_places_have_ids_and_groups_of_their_own():
    parts = split(samples_of("a", "a"), by="place")
    everyone = [s for part in parts.values() for s in part]
    assert Counter(map(len, parts.values())) == {2: 3}
    assert len({s.id for s in everyone}) == 6
    assert not {s.group for s in parts["train"]} & {s.group for s in parts["val"] + parts["test"]}


def test_explicit_regions():
    parts = split(samples_of("a"), by="place", axis="y", regions={"train": [20, 90], "test": [0, 15]})
    assert {name: part[0].window for name, part in parts.items()} == {
        "train": (20, 90, 0, 200),
        "test": (0, 15, 0, 200),
    }


@pytest.mark.parametrize(
    "regions",
    [
        {"train": [0, 50], "val": [49, 90]},
        {"train": [0, 50], "val": [90, 60]},
        {"train": [-5, 50]},
        {"train": [0]},
        {"train": [0, 50, 60]},
        {"train": [0, 201]},
    ],
)
def test_regions_that_do_not_fit(regions):
    with pytest.raises(UserError, match=r"split\.regions"):
        split(samples_of("a"), by="place", regions=regions)


@pytest.mark.parametrize("options", [{"gap": 100}, {"gap": -5}, {"fractions": {"train": 0.999, "test": 0.001}}])
def test_no_room_for_the_places(options):
    with pytest.raises(UserError, match="room"):
        split(samples_of("a"), by="place", **options)
