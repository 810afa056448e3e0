"""Labels become class numbers; labels that are not among the classes are reported."""

import pytest

from project.data.raw.labels import find_labels
from project.data.raw.samples import Problems, Sample
from project.errors import UserError


def samples(*labels) -> list[Sample]:
    return [Sample(f"{i:02d}", {}, label=label) for i, label in enumerate(labels)]


def find(*labels, names=()):
    problems = Problems()
    encoder = find_labels(samples(*labels), list(names), problems)
    problems.check()
    return encoder


def encoded(*labels, names=()) -> list:
    return find(*labels, names=names).encode(samples(*labels)).tolist()


def test_names_are_numbered_in_their_order():
    assert encoded("b", "a", names=["b", "a"]) == [0, 1]
    assert encoded("b", "a") == [1, 0]
    assert find("10", "9", "b", "a").names == ["9", "10", "a", "b"]


def test_numbers_with_names():
    assert encoded("1", "0", names=["good", "bad"]) == [1, 0]
    assert encoded("2", "5", names=["5", "2"]) == [1, 0]
    with pytest.raises(UserError, match='- 01: the label "2" is not among the classes good, bad'):
        find("1", "2", names=["good", "bad"])
    # One name among numbers: they are not the numbers of the classes.
    with pytest.raises(UserError, match='- 01: the label "1" is not'):
        find("good", "1", names=["good", "bad"])


def test_names_that_are_numbers_are_not_positions():
    assert encoded("2", "1", "3", names=["1", "2", "3"]) == [1, 0, 2]
    for names in (["1", "2", "3", "4", "5"], ["low", "2", "high"]):
        for labels in (("0", "1", "2"), ("0",)):  # also where no label is a name
            with pytest.raises(UserError, match='- 00: the label "0" is not'):
                find(*labels, names=names)
    problems = Problems(skip=True)
    found = samples("0", "1", "5")
    labels = find_labels(found, ["1", "2", "3", "4", "5"], problems)
    assert labels.encode(problems.usable(found)).tolist() == [0, 4]


def test_doubtful_labels_are_reported():
    problems = Problems()
    find_labels(samples("Live", "live", "dead cell", "Dead_cell", "NA", "-1", "1", "x-", "x"), [], problems)
    assert len(problems.warnings) == 3
    assert 'labels: "NA" (1 samples) looks like a missing value' in problems.warnings[0]
    assert [warning.count("samples") for warning in problems.warnings[1:]] == [2, 2]
    find_labels(samples("1", "01", "2.0"), [], problems)
    assert '"01" (1 samples) and "1" (1 samples)' in problems.warnings[3]
    find_labels(samples("Live", "live", "NA"), ["Live", "live", "NA"], named := Problems())
    assert not named.warnings


def test_rare_names_close_to_a_frequent_one_are_reported():
    labels = ["pullover"] * 10 + ["pulover", "pulover", "day 1", "coat"] + ["day 2"] * 9 + ["cat"] * 3
    find_labels(samples(*labels), [], problems := Problems())
    assert problems.warnings == ["labels: pulover (2): misspelt pullover (10)?"]
    assert problems.notes == ["labels: pullover 10, day 2 9, cat 3, pulover 2 and 2 more (see splits.csv)"]


def test_classes_that_no_image_is_of():
    find_labels(samples("a", "c"), ["a", "b", "c", "d"], problems := Problems())
    assert problems.warnings == ["labels: no image is of class b, d"]


def test_several_labels():
    texts = (("round", "budding"), (), ("dead",))
    labels = find(*texts)
    assert labels.names == ["budding", "dead", "round"]
    assert labels.encode(samples(*texts)).tolist() == [[1, 0, 1], [0, 0, 0], [0, 1, 0]]


def test_each_stray_label_of_many_samples_has_a_line():
    with pytest.raises(UserError) as caught:
        find(*(("good",) if i < 10 else (f"x{i % 5}", "y") for i in range(40)), names=["good"])
    message = str(caught.value)
    assert message.count("\n  - ") == 6
    assert '- 6 samples or files, such as 10: the label "x0" is not' in message
    assert '- 30 samples or files, such as 10: the label "y" is not' in message
