"""Model package for bioimage.io (format 0.5): ONNX weights, test tensors, description, model card, cover picture.

https://bioimage.io/docs/#/bioimageio_model_spec
"""

import re
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from torch import Tensor

from project.errors import UserError
from project.files import atomic_path
from project.inference.model import Model
from project.provenance import git

TOLERANCE = 1e-4  # largest difference of a result, as a share of the target's range (of 1, for probabilities)
UNITS, PROBABILITIES = "values in the units of the target", "probabilities of classes"
OUTPUTS = {"image": UNITS, "value": UNITS, "mask": PROBABILITIES, "label": PROBABILITIES}
TO_FILL_IN = "To be filled in by whoever publishes this model: the license of the weights.\n"
DESCRIPTION = (
    "{kind}: raw values of {channels} as {dtype} to {output}. Normalization and conversion to units are part of the "
    "network's graph; therefore no pre- or postprocessing is listed. The documentation says what was measured on which "
    "images."
)


def write_package(path: Path, model: Model, weights: Path, raw: Tensor, size: tuple[int, int] | int) -> None:
    """Write a zip file that passes the checks of `bioimageio.spec`, without a network connection.

    Args:
        path: The zip file.
        model: Of one run, whose card.md and first picture are put in.
        weights: The exported ONNX file.
        raw: Test input, (1, C, H, W); the test output is that of the run itself.
        size: The only height and width that work, or the least of both.

    Raises:
        UserError: The description is not valid.
    """
    from bioimageio.spec import InvalidDescr, ValidationContext, build_description, save_bioimageio_package
    from loguru import logger

    logger.disable("bioimageio")  # what matters is raised
    prediction = model.task(raw).numpy().astype(np.float32)
    with TemporaryDirectory() as temporary, ValidationContext(log_warnings=False):
        folder = Path(temporary)
        np.save(folder / "test_input.npy", raw.numpy())
        np.save(folder / "test_output.npy", prediction)
        (folder / "LICENSE.txt").write_text(TO_FILL_IN)
        tensors = _tensors(folder, model, raw, prediction, size)
        description = build_description(_about(folder, model, weights.resolve(), raw.numpy().dtype) | tensors)
        if isinstance(description, InvalidDescr):
            reason = description.get_reason()
            raise UserError(f"{model.members[0].run.name} cannot be packed for bioimage.io: {reason}")
        with atomic_path(path, ".zip") as partial:
            save_bioimageio_package(description, output_path=partial)


def _about(folder: Path, model: Model, weights: Path, dtype: np.dtype) -> dict[str, Any]:
    """Everything but the tensors; the text of the license is in the folder."""
    import onnx
    from bioimageio.spec.model.v0_5 import ModelDescr

    run, kind = model.members[0].run, model.task.kind
    output, channels = OUTPUTS.get(model.task.target_kind or "", "features"), ", ".join(model.channels)
    card, pictures = run.folder / "card.md", sorted((run.folder / "pictures").glob("*.png"))
    opset = next(entry.version for entry in onnx.load(weights).opset_import if entry.domain in ("", "ai.onnx"))
    author = git("config", "user.name") or "To be filled in"
    return {
        "type": "model",
        "format_version": ModelDescr.implemented_format_version,
        "name": re.sub(r"[^A-Za-z0-9_+\- ()]", "-", f"{run.experiment} ({kind})")[:64],
        "description": DESCRIPTION.format(kind=kind, channels=channels, dtype=dtype.name, output=output)[:1024],
        "authors": [{"name": author.replace("/", " ")}],
        "license": {"source": folder / "LICENSE.txt"},
        "tags": ["2d", "pytorch", "onnx", kind],
        "covers": [{"source": picture.resolve()} for picture in pictures[:1]],
        **({"documentation": {"source": card.resolve()}} if card.is_file() else {}),
        "weights": {"onnx": {"source": weights, "opset_version": opset}},
    }


def _tensors(
    folder: Path, model: Model, raw: Tensor, prediction: np.ndarray, size: tuple[int, int] | int
) -> dict[str, Any]:
    """Descriptions of input and output; their test tensors are in the folder."""
    sizes = [{"min": size, "step": 1}] * 2 if isinstance(size, int) else size
    space = [{"type": "space", "id": name, "size": size} for name, size in zip("yx", sizes, strict=True)]
    same = [{"type": "space", "id": name, "size": {"tensor_id": "raw", "axis_id": name}} for name in "yx"]
    n = prediction.shape[1]
    known = (list(model.task.parts), model.task.classes.get(model.task.target_kind or "", []))
    names = next((names for names in known if len(names) == n), [str(i) for i in range(n)])
    # The format allows 1 % of the largest value, and nothing where that is negative.
    absolute = min(TOLERANCE * model.prediction_range, 0.01 * float(prediction.max()))
    tolerances = [{"relative_tolerance": 1e-3, "absolute_tolerance": absolute}] if absolute >= 0 else []
    output = folder / "test_output.npy"
    return {
        "inputs": [_tensor("raw", folder / "test_input.npy", raw.numpy().dtype, model.channels, space)],
        "outputs": [_tensor("prediction", output, prediction.dtype, names, same if model.dense else [])],
        "config": {"bioimageio": {"reproducibility_tolerance": tolerances}},
    }


def _tensor(name: str, file: Path, dtype: np.dtype, channels: list[str], space: list[dict[str, Any]]) -> dict[str, Any]:
    axes = [{"type": "batch"}, {"type": "channel", "channel_names": channels}, *space]
    return {"id": name, "axes": axes, "data": {"type": dtype.name}, "test_tensor": {"source": file}}
