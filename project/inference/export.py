"""Export of a run as ONNX, torch.export and bioimage.io package: normalization and units are inside, and checked."""

import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from project.errors import UserError, file_failure, python
from project.files import atomic_path, write_json
from project.inference.model import Model, load
from project.inference.model_package import TOLERANCE, write_package
from project.tasks.base import Task

ONNX = "onnx", "onnxscript", "onnxruntime"
REQUIRED = {"onnx": ONNX, "pt2": (), "bioimageio": (*ONNX, "bioimageio")}
EXTRAS = {"onnx": "export", "bioimageio": "export,bioimageio"}
EXAMPLE = 75, 100  # height and width; neither is a power of two, so that nothing is taken for constant
COMPARED = (1, 64, 64), (3, 40, 129), (1, 131, 257)  # batch, height, width
Function = Callable[[Tensor], np.ndarray]


class Exported(nn.Module):
    """Same result as `task(raw)`, without a branch on the size of the images; `task` is in evaluation mode."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.task = task

    def forward(self, raw: Tensor) -> Tensor:
        """Raw (B, C, H, W) -> (B, C', H, W) in the target's units, or probabilities (B, K, H, W) or (B, K)."""
        task, x = self.task, self.task.normalize_input(raw)
        height, width = x.shape[-2:]
        if (n := task.size_divisor) > 1:  # repeat the border, as `functional.pad` does
            x = _resized(x, 2, (height + n - 1) // n * n, height)
            x = _resized(x, 3, (width + n - 1) // n * n, width)
        output = task.net(x).float()
        if task.is_dense and n > 1:
            output = _resized(_resized(output, 2, height, height), 3, width, width)
        return task.decode_output(output)


def _resized(x: Tensor, axis: int, n: int, length: int) -> Tensor:
    """The first `n` positions along an axis of `length`; beyond it the last one is repeated."""
    return x.index_select(axis, torch.arange(n, device=x.device).clamp(max=length - 1))


def export(
    run: str,
    output: Path | None = None,
    formats: Sequence[str] | None = None,
    floats: bool = False,
    trust: bool = False,
    size: tuple[int, int] | None = None,
) -> str:
    """Write a run as ONNX and torch.export (.pt2), and compare their results with those of the run.

    "bioimageio" is a zip file with the ONNX file, see `project.inference.model_package`.

    Input `raw` (B, C, H, W), output `prediction`, as of `Model.estimate`. Batch, height and width are free, from the
    least size in export.json. Everything is float32 inside.

    Args:
        run: A run folder or an experiment's name.
        output: Folder; by default `export` in the run folder.
        formats: Some of "onnx", "pt2" and "bioimageio"; by default those whose packages are installed.
        floats: Whether raw values are float32; otherwise of the camera's dtype.
        trust: See `project.runs.untrusted`.
        size: Height and width, for networks that work with one size only.

    Raises:
        UserError: A format or a package is missing, the network cannot be exported, or the file gives other numbers.
    """
    wanted = _check_formats(formats)
    model = load(run, "cpu", trust)
    task, source = model.task, model.members[0].run
    dtype = np.dtype(np.float32) if floats else model.dtype
    least = max(task.size_divisor, 32) + 1
    example = size or (max(least, EXAMPLE[0]), max(least, EXAMPLE[1]))
    sizes = [(1, *example), *(COMPARED if size is None else [(3, *size)])]
    about = {
        **model.origin,
        "input": {"name": "raw", "dtype": dtype.name, "channels": model.channels, "least_size": size or least},
        "output": {"name": "prediction", "channels": task.channels.get("target"), "classes": task.classes},
    }
    stem = (output or source.folder / "export") / source.experiment
    lines, differences = list[str](), dict[str, float]()
    with torch.no_grad(), _quiet_exporters():
        program = _program(model, _example(model, 2, *example, dtype), size)
        for name in (name for name in WRITERS if name in wanted):
            path = stem.with_name(f"{stem.name}.{name}")
            with atomic_path(path, f".{name}") as temporary:
                difference = _difference(model, WRITERS[name](program, temporary, about), sizes, dtype)
                if not difference <= TOLERANCE:
                    raise UserError(
                        f"{name}: the exported file differs from {source.name} by {difference:.2g} of the range (up to "
                        f"{TOLERANCE:g} is rounding); it was not written"
                    )
            differences[name] = difference
            lines.append(f"{path}: differs from the run by {difference:.1e} of the range at most")
        if "bioimageio" in wanted:
            path = stem.with_name(f"{stem.name}.bioimageio.zip")
            onnx = stem.with_name(f"{stem.name}.onnx")
            write_package(path, model, onnx, _example(model, 1, *example, dtype), size or least)
            lines.append(f"{path}: valid for bioimageio.spec; fill in LICENSE.txt, check the authors")
    write_json(stem.with_name("export.json"), {**about, "difference": differences, "torch": torch.__version__})
    lines += [f"no {name}: {_install(name)}" for name in REQUIRED if name not in wanted and formats is None]
    return "\n".join(lines)


def _install(name: str) -> str:
    return f"{python()} -m pip install -e '.[{EXTRAS[name]}]'"


def _check_formats(formats: Sequence[str] | None) -> list[str]:
    """The formats that were asked for, with those they need, or all that can be written; UserError if one cannot be."""
    missing = {name: [package for package in packages if not find_spec(package)] for name, packages in REQUIRED.items()}
    formats = formats or [name for name in REQUIRED if not missing[name]]
    for name in formats:
        if name not in REQUIRED:
            raise UserError(f'there is no format "{name}"; take one of {", ".join(REQUIRED)}')
        if missing[name]:
            raise UserError(f"{name} needs {', '.join(missing[name])}: {_install(name)}")
    return [*formats, *(["onnx"] if "bioimageio" in formats else [])]


def _program(model: Model, example: Tensor, size: tuple[int, int] | None) -> ExportedProgram:
    # Not `Dim("height")`: its solver refuses what it cannot prove for all sizes, such as 1 % (512 * k) != 0.
    dims: dict[int, Any] = dict.fromkeys((0,) if size else (0, 2, 3), Dim.DYNAMIC)
    try:
        module = Exported(model.task).eval().requires_grad_(False)
        return torch.export.export(module, (example,), dynamic_shapes={"raw": dims})
    except Exception as error:  # any error, from any network
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        hint = "" if size else "\nIf it works with one size only, add --size HEIGHT WIDTH"
        raise UserError(f"{model.members[0].run.name} cannot be exported: {first}{hint}") from error


def _write_pt2(program: ExportedProgram, path: Path, about: dict[str, Any]) -> Function:
    content = io.BytesIO()  # torch's own writer ends the process on a full disk
    torch.export.save(program, content, extra_files={"about.json": json.dumps(about)})
    path.write_bytes(content.getvalue())
    loaded = torch.export.load(path).module()
    return lambda raw: np.asarray(loaded(raw).numpy())


def _write_onnx(program: ExportedProgram, path: Path, about: dict[str, Any]) -> Function:
    try:
        onnx: Any = torch.onnx.export(
            program, (), dynamo=True, verbose=False, input_names=["raw"], output_names=["prediction"]
        )
        onnx.model.metadata_props.update({key: json.dumps(value) for key, value in about.items()})
        onnx.save(path)
    except Exception as error:  # any error, from any layer
        if file_failure(error):
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
        raise UserError(f"the network cannot be written as ONNX, try --formats pt2: {reason}") from error
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda raw: np.asarray(session.run(None, {"raw": raw.numpy()})[0])


WRITERS = {"onnx": _write_onnx, "pt2": _write_pt2}


def _difference(model: Model, function: Function, sizes: Sequence[tuple[int, int, int]], dtype: np.dtype) -> float:
    """Largest difference from the task, as a share of the range of the target (or of probabilities, 1)."""
    largest = 0.0
    for batch, height, width in sizes:
        raw = _example(model, batch, height, width, dtype)
        expected, result = model.task(raw).numpy(), function(raw)
        if result.shape != expected.shape:
            return float("inf")
        largest = max(largest, float(np.abs(result - expected).max()) / model.prediction_range)
    return largest


def _example(model: Model, batch: int, height: int, width: int, dtype: np.dtype) -> Tensor:
    """Noise with mean and standard deviation of the training images, (B, C, H, W)."""
    rng = np.random.default_rng(0)
    planes = [
        rng.normal(c["mean"], c["std"], (batch, height, width)).clip(c["min"], c["max"]).astype(dtype)
        for c in model.task.statistics["image"]
    ]
    return torch.from_numpy(np.stack(planes, 1))


@contextmanager
def _quiet_exporters() -> Iterator[None]:
    """Hide what the exporters log: the comparison decides."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
