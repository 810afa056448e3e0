"""A user's source is found, checked and read like the built-in ones."""

import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
from raw_folders import read

from project.data.config import DatasetConfig, TableConfig
from project.data.raw.find_samples import find_samples
from project.data.raw.images import FileRef
from project.data.raw.samples import Problems, Sample
from project.data.raw.sources import find_source
from project.errors import UserError

README = Path(__file__).parents[3] / "configs/data/README.md"
OWN = next(part for part in README.read_text().split("```python\n") if "class Pairs(Source)" in part).partition("```")[
    0
]


@pytest.fixture
def own(raw, tmp_path, monkeypatch):
    """Makes a configuration with a class in a module of this name, in the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [entry for entry in sys.path if entry not in ("", str(tmp_path))])
    known = set(sys.modules)

    def make(name: str, code: str = OWN, class_name: str = "Pairs", **options) -> DatasetConfig:
        (tmp_path / f"{name}.py").write_text(code)
        arguments = options.pop("arguments", {"folder": str(raw)})
        source = {"class_path": f"{name}.{class_name}" if class_name else name, "init_args": arguments}
        return DatasetConfig(str(raw), source=source, **options)

    yield make
    for name in set(sys.modules) - known:
        del sys.modules[name]


def test_a_source_of_the_user(raw, own):
    for day, name in (("d1", "a"), ("d2", "a"), ("d2", "b")):
        (raw / day).mkdir(exist_ok=True)
        np.savez(raw / day / f"{name}.npz", phase=np.full((4, 5), 7, np.uint16), dna=np.zeros((2, 4, 5)))
    (raw / "d2/c.npz").touch()
    (raw / "t.csv").write_text("id,kind\nd2/a,x\nd2/b,y\nd1/a,x\n")
    config = own("my_pairs", table=TableConfig("t.csv", label="kind"))
    with pytest.raises(UserError, match="- d2/c: the file is empty"):
        find_samples(config, Problems())
    problems = Problems(skip=True)
    samples = find_samples(config, problems)
    assert [(s.id, s.group, s.label) for s in samples] == [
        ("d1/a", "d1", "x"),
        ("d2/a", "d2", "x"),
        ("d2/b", "d2", "y"),
    ]
    assert problems.skipped == [("d2/c", "the file is empty")]
    assert find_source(config).channels["target"] == ["dna"]
    assert read(samples[2], "image").dtype == np.uint16
    assert read(samples[2], "target").shape == (2, 4, 5)
    assert samples[2].images["image"][0].paths == (raw / "d2/b.npz",)
    assert pickle.loads(pickle.dumps(samples)) == samples


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"class_name": "Pears"}, '"m.Pears" cannot be imported: AttributeError'),
        ({"class_name": "Sample"}, '"m.Sample" is no class derived from project.data.raw.sources.Source'),
        ({"arguments": {"folder": "x", "days": 3}}, "unexpected keyword argument 'days'; it takes folder, day"),
        ({"arguments": {}}, "missing a required argument: 'folder'; it takes folder, day"),
        ({"code": "import no_such_package"}, '"m.Pairs" cannot be imported: ModuleNotFoundError'),
        ({"code": OWN.replace("def samples", "def sample")}, "with a method `samples`"),
    ],
)
def test_sources_that_cannot_be_made(own, options, message):
    config = own("m", **options)
    with pytest.raises(UserError) as caught:
        find_source(config)
    assert message in str(caught.value)


LISTED = """from project.data.raw.sources import *

class Listed(Source):
    def __init__(self, samples):
        self.listed = samples

    def samples(self, problems):
        return self.listed
"""


def listing(own, samples, skip=False, **options):
    problems = Problems(skip)
    config = own("listed", LISTED, "Listed", arguments={"samples": samples}, **options)
    return find_samples(config, problems), problems.skipped


def test_samples_of_the_user_are_checked(raw, own):
    image = [FileRef(raw / "a.tif")]
    good = Sample("ok", {"image": image})
    with pytest.raises(UserError, match="objects of the class Sample, not str"):
        listing(own, ["a.tif"])
    with pytest.raises(UserError, match="there is no sample"):
        listing(own, [])
    with pytest.raises(UserError, match="a: unknown role masks; the roles are image, target, mask, instances"):
        listing(own, [Sample("a", {"image": image, "masks": image})])
    bad = [Sample(id_, {"image": image}) for id_ in ("b", "b", "")]
    bad += [Sample("c", {"image": image, "mask": image}), Sample("d", {"target": image})]
    samples, skipped = listing(own, [good, *bad], skip=True)
    assert [s.id for s in samples] == ["ok"]
    assert dict(skipped) == {
        "c": "has image, mask, most have image",
        "b": "2 samples have this id",
        "''": "the id is empty or not UTF-8; rename the file",
        "d": "has no image",
    }
