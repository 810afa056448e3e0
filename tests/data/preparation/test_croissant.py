"""A prepared dataset is described for others: croissant.json."""

import csv
import hashlib
import json

from project.data.config import SplitConfig


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
