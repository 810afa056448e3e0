"""No group is in two splits, and nothing but the seed and the names decides which goes where."""

import random
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from project.data.config import SplitConfig
from project.data.preparation.splits import split_samples
from project.data.raw.samples import Sample
from project.errors import UserError


def samples_of(*groups: str) -> list[Sample]:
    """One sample per entry."""
    return [Sample(f"{group}/{i:04d}", {}, group) for i, group in enumerate(groups)]


def labelled(contents: dict[str, Iterable], field: str = "label") -> list[Sample]:
    """Group -> its samples, the class of each, or another field."""
    return [
        Sample(f"{group}/{i:04d}", {}, group, **{field: value})
        for group, values in contents.items()
        for i, value in enumerate(values)
    ]


def multi_labelled(contents: dict[str, str]) -> list[Sample]:
    """Group -> the classes of its samples, as "ab,,c": three samples, the second without a class."""
    return labelled({group: [tuple(letters) for letters in text.split(",")] for group, text in contents.items()})


def given_samples(**groups: str) -> list[Sample]:
    """Group -> its given splits, one letter for each sample: t(rain), v(al), e(test) or - for none."""
    names = {"t": "train", "v": "val", "e": "test", "-": None}
    return labelled({group: [names[letter] for letter in letters] for group, letters in groups.items()}, "split")


def split(samples: list[Sample], **options) -> dict[str, list[Sample]]:
    return split_samples(samples, SplitConfig(**options), lambda _: (100, 200), [])


DIVISIONS = [
    *(
        {"fractions": dict(zip(("train", "val", "test"), f, strict=True))}
        for f in ((0.7, 0.15, 0.15), (0.98, 0.01, 0.01))
    ),
    {"stratify": True},
    {"folds": 2, "fractions": {"test": 0.1}},
    {"folds": 5, "fractions": {}, "stratify": True},
]


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.text("abcd", min_size=1, max_size=9), min_size=7, max_size=25),
    st.integers(0, 2**32),
    st.sampled_from(DIVISIONS),
)
def test_groups_stay_together_and_nothing_is_lost(texts, seed, options):
    samples = labelled({f"g{i}": text for i, text in enumerate(texts)})
    parts, wanted = split(samples, seed=seed, **options), SplitConfig(**options).fractions
    assert list(parts) == [name for name in ("train", "val", "test") if wanted.get(name)]
    assert all(s.fold is None for name, part in parts.items() for s in part if name != "train")
    for part in parts.values():
        assert [s.id for s in part] == sorted(s.id for s in part)
    if n_folds := options.get("folds"):
        folds = folds_of(parts)
        assert list(folds) == list(range(n_folds))
        wanted = wanted | dict.fromkeys(folds, wanted["train"] / n_folds)
        parts = {name: part for name, part in parts.items() if name != "train"} | folds
    groups = [{s.group for s in part} for part in parts.values()]
    assert all(groups)
    assert sum(map(len, groups)) == len(set().union(*groups)) == len(texts)
    assert sorted(s.id for part in parts.values() for s in part) == sorted(s.id for s in samples)
    for name, part in () if options.get("stratify") else parts.items():
        # A group is the grain of the division, and the last ones fill what would stay empty.
        assert abs(len(part) - wanted[name] * len(samples)) <= 2 * max(map(len, texts))


def warned(samples: list[Sample], **options) -> tuple[dict[str, int], list[str]]:
    """Split -> number of samples, and the warnings."""
    warnings: list[str] = []
    parts = split_samples(samples, SplitConfig(**options), lambda _: (100, 200), warnings)
    return {name: len(part) for name, part in parts.items()}, warnings


@pytest.mark.parametrize("stratify", [False, True])
def test_large_groups_do_not_decide_the_shares(stratify):
    big, even = labelled({"a": "xy" * 15, "b": "x", "c": "y"}), samples_of(*(f"g{i % 20}" for i in range(200)))
    for seed in range(8):
        parts, (warning,) = warned(big, seed=seed, stratify=stratify)
        assert parts == {"train": 30, "val": 1, "test": 1}
        assert "train has 30 (93.8% for 70.0%)" in warning
        assert warned(even, seed=seed)[1] == []
    assert warned(samples_of(*"abcd"))[1] == []  # single samples cannot come closer
    _, (warning,) = warned(samples_of(*"aaaaaaaabbbbbbbb", "c"), folds=3, fractions={"test": 0})
    assert "the folds differ much" in warning
    _, (warning,) = warned(samples_of(*("a" * 990 + "b" * 10)), fractions={"train": 0.95, "test": 0.05})
    assert "test has" in warning


@pytest.mark.parametrize("groups", ["a", "aab"])
def test_too_few_groups(groups):
    with pytest.raises(UserError, match=r"at least 3 groups.*\n.*- a(.|\n)*by: place"):
        split(samples_of(*groups))


@pytest.mark.parametrize("fractions", [{"train": 0.7, "val": 0.7}, {"train": 1.5, "val": -0.5}, {"train": 0.5}])
@pytest.mark.parametrize("by", ["group", "place"])
def test_fractions_that_do_not_add_up(fractions, by):
    with pytest.raises(UserError, match="add up to 1"):
        split(samples_of(*"abcd"), by=by, fractions=fractions)


@settings(max_examples=100, deadline=None)
@given(st.integers(30, 4000), st.integers(0, 9), st.sampled_from(["x", "y"]), st.integers(20, 60), st.integers(10, 20))
def test_places_are_apart_by_the_gap_and_cover_the_rest(length, gap, axis, train, val):
    fractions = {"train": train / 100, "val": val / 100, "test": 1 - train / 100 - val / 100}
    size = (8, length) if axis == "x" else (length, 8)
    config = SplitConfig(by="place", axis=axis, gap=gap, fractions=fractions)
    parts = split_samples(samples_of("a", "b"), config, lambda _: size, [])
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


def test_groups_in_two_given_splits_are_all_listed():
    with pytest.raises(UserError, match=r"leak(.|\n)*- a: test, train\n  - c: train, val\n"):
        split(given_samples(a="te", b="tt", c="vt", d="e"))


def test_frames_of_one_field_are_cut_at_the_same_pixels():
    widths = {"a": 400, "b": 300, "c": 310}

    def regions(samples, **options):
        warnings: list[str] = []
        size = lambda s: (100, widths[s.id])  # noqa: E731
        parts = split_samples(samples, SplitConfig(by="place", **options), size, warnings)
        regions = {name: {s.id[0]: s.window[2:] for s in part} for name, part in parts.items()}
        return regions, groups_of(parts)["test"], warnings

    halves = {"train": 0.5, "val": 0.25, "test": 0.25}
    parts, groups, warnings = regions([Sample(name, {}) for name in "abc"], fractions=halves)
    assert groups == {"all frames@x225-300"}  # one group: intervals and tests must not take frames for independent
    assert parts == {
        "train": {"a": (0, 150), "b": (0, 150), "c": (0, 150)},
        "val": {"a": (150, 225), "b": (150, 225), "c": (150, 225)},
        "test": {"a": (225, 400), "b": (225, 300), "c": (225, 310)},
    }
    assert not warnings
    parts, groups, _ = regions([Sample("a", {}, "f"), Sample("b", {}, "g"), Sample("c", {}, "g")], fractions=halves)
    assert groups == {"f@x300-400", "g@x225-300"}
    assert [parts["val"][name] for name in "abc"] == [(200, 300), (150, 225), (150, 225)]
    widths["a"] = 3000
    _, _, (warning,) = regions([Sample(name, {}) for name in "abc"], fractions=halves)
    assert "in pixels along x" in warning


@pytest.mark.parametrize("options", [{"gap": 100}, {"gap": -5}, {"fractions": {"train": 0.999, "test": 0.001}}])
def test_no_room_for_the_places(options):
    with pytest.raises(UserError, match="room"):
        split(samples_of("a"), by="place", **options)


# --- the same classes everywhere ---


def plates(n: int, seed: int) -> dict[str, str]:
    """Plates of 1 to 10 images, each with classes of its own: a is common, d rare."""
    rng = random.Random(seed)
    kinds = ["aaaab", "abbb", "aacc", "ccd", "bbbbbbc"]
    return {f"plate {i:03d}": "".join(rng.choices(rng.choice(kinds), k=rng.randint(1, 10))) for i in range(n)}


def worst_share(parts: dict[str, list[Sample]], wanted: dict[str, float]) -> float:
    """The largest distance from the wanted share, of any class and of the samples, in any part."""
    counts = {name: Counter(c for s in part for c in {"all", *(s.label or "")}) for name, part in parts.items()}
    totals = sum(counts.values(), Counter[str]())
    return max(abs(counts[name][c] / totals[c] - share) for name, share in wanted.items() for c in totals)


FRACTIONS = {"train": 0.7, "val": 0.15, "test": 0.15}


@pytest.mark.parametrize("seed", range(3))
def test_stratified_groups_come_closer_to_the_shares_than_without(seed):
    """100 plates, the rarest class on about 15: within 6 points of the wanted share, and never further than without."""
    contents = plates(100, seed)
    close = worst_share(split(labelled(contents), seed=seed, stratify=True), FRACTIONS)
    assert close < 0.06
    assert close < worst_share(split(labelled(contents), seed=seed), FRACTIONS)
    # Two classes on each image, of one plate as of the next.
    double = {
        g: ",".join(a + b for a, b in zip(text, reversed(text), strict=True) if a != b) for g, text in contents.items()
    }
    close = worst_share(split(multi_labelled(double), seed=seed, stratify=True), FRACTIONS)
    assert close < 0.06
    assert close < worst_share(split(multi_labelled(double), seed=seed), FRACTIONS)


@pytest.mark.parametrize("seed", range(3))
def test_a_class_on_as_many_groups_as_splits_is_in_each_split(seed):
    rare = {f"rare {letter}{i}": letter * 2 for letter in "xyz" for i in range(3)}
    contents = {f"common {i}": "aaab" for i in range(50)} | rare
    for part in split(labelled(contents), seed=seed, stratify=True).values():
        assert {s.label for s in part} == set("abxyz")
    folds = {f"rare {letter}{i}": letter for letter in "xy" for i in range(5)} | {f"common {i}": "a" for i in range(50)}
    for part in folds_of(split(labelled(folds), seed=seed, stratify=True, folds=5, fractions={})).values():
        assert {s.label for s in part} == set("axy")


@pytest.mark.parametrize("seed", range(3))
def test_a_class_on_fewer_groups_than_splits_is_trained_on(seed):
    parts = split(
        labelled({f"a{i}": "aa" for i in range(20)} | {"b": "b", "c": "c", "c2": "c"}), seed=seed, stratify=True
    )
    assert {"b", "c"} <= {s.label for s in parts["train"]}
    assert "c" in {s.label for s in parts["val"] + parts["test"]}
    # Though c comes with classes that val and test could use.
    several = {"1": "bdefgh", "2": "cdefgh", "3": "defgh", **{f"a{i}": "a" for i in range(20)}}
    parts = split(multi_labelled(several), seed=seed, stratify=True)
    assert set("abcdefgh") == {letter for s in parts["train"] for letter in s.label}


def test_stratify_needs_labels():
    samples = [*labelled({"a": "xxx", "b": "y", "c": "y"}), *samples_of("d")]
    with pytest.raises(UserError, match=r"needs a label(.|\n)*- d/0000\n"):
        split(samples, stratify=True)
    # Not where nothing is to be decided.
    given_test = [*labelled({"a": "xxx", "b": "y", "c": "y"}), *given_samples(d="e")]
    assert groups_of(split(given_test, stratify=True, fractions={"train": 0.5, "val": 0.5}))["test"] == {"d"}


# --- folds ---


def folds_of(parts: dict[str, list[Sample]]) -> dict[int, list[Sample]]:
    """Fold -> its samples, in the order of the folds."""
    numbers = sorted({s.fold for s in parts["train"]})
    return {number: [s for s in parts["train"] if s.fold == number] for number in numbers}


def test_folds_keep_given_splits():
    samples = given_samples(a="ttt", b="t", c="ee", d="t", e="t", f="--e")
    parts = split(samples, folds=2)
    assert groups_of(parts) == {"train": set("abde"), "test": set("cf")}
    assert sorted(len(part) for part in folds_of(parts).values()) == [3, 3]
    free = given_samples(**{f"g{i}": "-" for i in range(10)}, x="t", y="e")
    parts = groups_of(split(free, folds=2, fractions={"test": 0.3}))
    assert {"x"} < parts["train"]
    assert {"y"} < parts["test"]
    assert len(parts["test"]) == 4


def test_a_given_val_and_folds():
    with pytest.raises(UserError, match=r"folds(.|\n)*- b/0000: val\n  - b/0001: val(.|\n)*Give them train"):
        split(given_samples(a="t", b="v-", c="t"), folds=2)
    with pytest.raises(UserError, match="no sample is left for training"):
        split(given_samples(a="e", b="e"), folds=2)


# --- the same on any machine ---


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {"train": "adefghjkl", "val": "bi", "test": "c"}),
        ({"stratify": True}, {"train": "adefghik", "val": "cl", "test": "bj"}),
        (
            {"folds": 3, "fractions": {"test": 0.2}},
            {"fold 0": "abhl", "fold 1": "fij", "fold 2": "dgk", "test": "ce"},
        ),
        (
            {"folds": 3, "fractions": {"test": 0.2}, "stratify": True},
            {"fold 0": "dehk", "fold 1": "bfj", "fold 2": "cgi", "test": "al"},
        ),
    ],
)
def test_the_divisions_of_seed_0_never_change(options, expected):
    """Published results name a seed: a change of this table breaks them."""
    samples = labelled({letter: "xxy" if letter in "abcdef" else "yz" for letter in "abcdefghijkl"})
    for order in (samples, samples[::-1], random.Random(5).sample(samples, len(samples))):
        groups: dict[str, str] = {}
        for name, part in split(order, **options).items():
            for sample in part:
                key = name if sample.fold is None else f"fold {sample.fold}"
                groups[key] = groups.get(key, "") + (sample.group if sample.id.endswith("0") else "")
        assert groups == expected
