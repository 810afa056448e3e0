"""Description of a prepared dataset for others: croissant.json (Croissant 1.0, JSON-LD).

Source: Akhtar et al., "Croissant: a metadata format for ML-ready datasets", 2024; http://mlcommons.org/croissant/1.0.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from project.data.store import SplitReader
from project.files import write_json

CONTEXT = {
    **{"@language": "en", "@vocab": "https://schema.org/", "sc": "https://schema.org/"},
    **{"cr": "http://mlcommons.org/croissant/", "dct": "http://purl.org/dc/terms/", "conformsTo": "dct:conformsTo"},
    **{name: f"cr:{name}" for name in ("recordSet", "field", "source", "fileObject", "extract", "column")},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
}
COLUMNS = {
    "id": "Of the sample, unique; also its name in the HDF5 files",
    "split": "train, val or test",
    "group": "Samples of one group are in one split",
    "fold": "For cross-validation; empty where there are no folds",
}


def describe_dataset(folder: Path, name: str, readers: dict[str, SplitReader]) -> None:
    """Write croissant.json into the folder of a prepared dataset."""
    train = readers["train"]
    facts = {
        "images": {split: len(reader) for split, reader in readers.items()},
        "content hash": {split: reader.content_hash for split, reader in readers.items()},
        "arrays of a training image": {r: [list(train.shapes[r][0]), str(dtype)] for r, dtype in train.dtypes.items()},
        **{key: train.attributes[key] for key in ("channels", "classes", "split")},
        "statistics of the training images": train.attributes["statistics"],
    }
    fields = []
    for column, meaning in COLUMNS.items():
        source = {"fileObject": {"@id": "splits.csv"}, "extract": {"column": column}}
        field = {"@type": "cr:Field", "@id": f"samples/{column}", "name": column, "description": meaning}
        fields.append(field | {"dataType": "sc:Text", "source": source})
    content = {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": name,
        "description": f"Images for machine learning, {sum(map(len, readers.values()))} samples in fixed splits.",
        "isBasedOn": train.attributes["source"]["config"]["raw"],
        "variableMeasured": [
            {"@type": "PropertyValue", "name": key, "value": json.dumps(value)} for key, value in facts.items()
        ],
        "distribution": [_file(reader.path, "application/x-hdf5") for reader in readers.values()]
        + [_file(folder / "splits.csv", "text/csv")],
        "recordSet": [{"@type": "cr:RecordSet", "@id": "samples", "name": "samples", "field": fields}],
    }
    write_json(folder / "croissant.json", content)


def _file(path: Path, encoding: str) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    named = {"@type": "cr:FileObject", "@id": path.name, "name": path.name, "contentUrl": path.name}
    return named | {"contentSize": f"{path.stat().st_size} B", "encodingFormat": encoding, "sha256": digest}
