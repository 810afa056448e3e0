"""A prepared dataset is described for others: croissant.json and splits.csv."""

import csv
import hashlib
import json

from project.data.config import SplitConfig


def test_the_same_division_can_be_made_from_the_file(folder):
    folder.pairs(12)
    first = folder.prepare(split=SplitConfig(seed=3))
    (folder.raw / "splits.csv").write_text((folder.final / "splits.csv").read_text())
    second = folder.prepare(split=SplitConfig(file="splits.csv", seed=8))
    assert {name: reader.ids for name, reader in second.items()} == {name: r.ids for name, r in first.items()}


def test_files_samples_and_statistics_are_described(folder):
    folder.pairs()
    readers = folder.prepare(split=SplitConfig(folds=2, fractions={"train": 0.75, "test": 0.25}))
    content = json.loads((folder.final / "croissant.json").read_text())
    assert content["conformsTo"].endswith("croissant/1.0")
    for entry in content["distribution"]:
        data = (folder.final / entry["contentUrl"]).read_bytes()
        assert entry["sha256"] == hashlib.sha256(data).hexdigest()
    facts = {entry["name"]: json.loads(entry["value"]) for entry in content["variableMeasured"]}
    assert facts["content hash"] == {name: reader.content_hash for name, reader in readers.items()}
    statistics = facts["statistics of the training images"]
    assert statistics["image"][0]["n"] == len(readers["train"]) * 12 * 10
    rows = list(csv.DictReader((folder.final / "splits.csv").read_text().splitlines()))
    assert [row["id"] for row in rows if row["split"] == "train"] == readers["train"].ids
    assert [int(row["fold"]) for row in rows if row["split"] == "train"] == readers["train"].folds.tolist()
    assert [field["name"] for field in content["recordSet"][0]["field"]] == list(rows[0])
