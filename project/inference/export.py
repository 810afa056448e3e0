"""A trained run as a file that other programs run: ONNX and torch.export, normalisation and units inside."""

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

from project.errors import UserError, write_failure
from project.files import atomic_path, write_json
from project.inference.model import Model, load
from project.tasks.base import Task

FORMATS = ("onnx", "pt2")
NEEDED = {"onnx": ("onnx", "onnxscript")}
INSTALL = "pip install -e .[export]"
# Largest difference from the task itself, as a share of the target's range (of 1, for probabilities).
TOLERANCE = 1e-4
EXAMPLE = 75, 100  # height and width that belong to no power of two, so that nothing is taken for constant
TRIED = (1, 64, 64), (3, 40, 129), (1, 131, 257)  # batch, height, width


class Exported(nn.Module):
    """What `task(raw)` does, without a branch on the size of the images.

    Args:
        task: With its weights, in evaluation.
        dense: Whether there is a prediction for each pixel.
    """

    def __init__(self, task: Task, dense: bool) -> None:
        super().__init__()
        self.task, self.dense = task, dense

    def forward(self, raw: Tensor) -> Tensor:
        """Raw (B, C, H, W) -> (B, C', H, W) in the target's units, or probabilities (B, K, H, W) or (B, K)."""
        task, x = self.task, self.task.normalize(raw)
        height, width = x.shape[-2:]
        if task.size_divisor > 1:  # the border repeated, as `functional.pad` does
            x = _taken(x, 2, (height + task.size_divisor - 1) // task.size_divisor * task.size_divisor, height)
            x = _taken(x, 3, (width + task.size_divisor - 1) // task.size_divisor * task.size_divisor, width)
        output = task.net(x).float()
        if self.dense and task.size_divisor > 1:
            output = _taken(_taken(output, 2, height, height), 3, width, width)
        return task.decode_output(output)


def export(
    run: str,
    output: Path | None = None,
    formats: Sequence[str] | None = None,
    floats: bool = False,
    trust: bool = False,
    size: tuple[int, int] | None = None,
) -> str:
    """Write a run as ONNX and torch.export (.pt2), and compare what they give with what the run gives.

    Input `raw` (B, C, H, W), output `prediction`, as of `predict.Model.estimate`. Batch, height and width are open,
    from the smallest size on that stands in export.json. Everything is float32 inside.

    Args:
        run: A run folder or an experiment's name.
        output: Folder; by default `export` in the run folder.
        formats: Some of "onnx" and "pt2"; by default those for which the packages are there.
        floats: Whether raw values are given as float32; else in the camera's dtype.
        trust: See `project.runs.untrusted`.
        size: Height and width, for networks that work on one size only.

    Returns:
        What was written, and how large the difference is.

    Raises:
        UserError: A format or a package is not there, the network cannot be exported, or the file gives other numbers.
    """
    wanted = list(formats or [name for name in FORMATS if not _missing(name)])
    if unknown := [name for name in wanted if name not in FORMATS]:
        raise UserError(f'there is no format "{unknown[0]}"; take {" or ".join(FORMATS)}')
    for name in wanted:
        if missing := _missing(name):
            raise UserError(f"{name} needs the package{'s' * (len(missing) > 1)} {', '.join(missing)}: {INSTALL}")
    model = load(run, "cpu", trust)
    member = model.members[0]
    folder = output or member.run.folder / "export"
    module = Exported(member.task, model.dense).eval().requires_grad_(False)
    dtype = np.dtype(np.float32) if floats else model.dtype
    least = 1 if size else max(member.task.size_divisor, 32) + 1
    about = {
        **model.origin,
        "input": {"name": "raw", "dtype": dtype.name, "channels": model.channels, "least_size": size or least},
        "output": {
            "name": "prediction",
            "channels": member.task.channels.get("target"),
            "classes": member.task.classes,
        },
    }
    told, checks = list[str](), dict[str, float | None]()
    with torch.no_grad(), _quietly():
        program = _program(module, _example(model, 2, *(size or EXAMPLE), dtype), size, member.run.name)
        for name in wanted:
            path = folder / f"{member.run.experiment}.{name}"
            with atomic_path(path, f".{name}") as temporary:
                function = WRITERS[name](program, temporary, about)
                sizes = TRIED if size is None else ((1, *size), (3, *size))
                difference = _difference(model, module, function, sizes, dtype) if function else None
                if difference is not None and not difference <= TOLERANCE:
                    raise UserError(
                        f"{name}: what is exported gives other numbers than {member.run.name}, by {difference:.2g} of "
                        f"the range (up to {TOLERANCE:g} would be rounding); it was not written"
                    )
            checks[name] = difference
            told.append(f"{path}: {_told(difference)}")
    write_json(folder / "export.json", {**about, "difference": checks, "torch": torch.__version__})
    told += [f"no {name}: {INSTALL}" for name in FORMATS if name not in wanted and formats is None]
    return "\n".join(told)


def _program(module: Exported, example: Tensor, size: tuple[int, int] | None, name: str) -> ExportedProgram:
    # Not `Dim("height")`: its solver refuses what it cannot prove for all sizes, such as 1 % (512 * k) != 0.
    dims: dict[int, Any] = dict.fromkeys((0,) if size else (0, 2, 3), Dim.DYNAMIC)
    try:
        return torch.export.export(module, (example,), dynamic_shapes={"raw": dims})
    except Exception as error:  # whatever a network brings it to
        first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        hint = "" if size else "\nIf it works on one size only, say so with --size HEIGHT WIDTH"
        raise UserError(f"{name} cannot be exported: {first}{hint}") from error


def _to_pt2(program: ExportedProgram, path: Path, about: dict[str, Any]) -> Callable[[Tensor], np.ndarray]:
    content = io.BytesIO()  # torch's own writer ends the process on a full disk
    torch.export.save(program, content, extra_files={"about.json": json.dumps(about)})
    path.write_bytes(content.getvalue())
    loaded = torch.export.load(path).module()
    return lambda raw: np.asarray(loaded(raw).numpy())


def _to_onnx(program: ExportedProgram, path: Path, about: dict[str, Any]) -> Callable[[Tensor], np.ndarray] | None:
    try:
        onnx = torch.onnx.export(
            program, (), dynamo=True, verbose=False, input_names=["raw"], output_names=["prediction"]
        )
        assert onnx is not None
        onnx.model.metadata_props.update({key: json.dumps(value) for key, value in about.items()})
        onnx.save(path)
    except Exception as error:  # whatever a layer brings it to
        if write_failure(error):
            raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise UserError(f"the network cannot be written as ONNX, try --formats pt2: {reason}") from error
    if not find_spec("onnxruntime"):
        return None
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda raw: np.asarray(session.run(None, {"raw": raw.numpy()})[0])


WRITERS: dict[str, Callable[[ExportedProgram, Path, dict[str, Any]], Callable[[Tensor], np.ndarray] | None]] = {
    "onnx": _to_onnx,
    "pt2": _to_pt2,
}


def _difference(
    model: Model,
    module: Exported,
    function: Callable[[Tensor], np.ndarray],
    sizes: Sequence[tuple[int, int, int]],
    dtype: np.dtype,
) -> float:
    """Largest difference from the task, as a share of the range of the target (or of probabilities, 1)."""
    scale = model.task.prediction_range
    worst = 0.0
    for batch, height, width in sizes:
        raw = _example(model, batch, height, width, dtype)
        expected = module.task(raw).numpy()
        found = function(raw)
        if found.shape != expected.shape:
            return float("inf")
        worst = max(worst, float(np.abs(found - expected).max()) / scale)
    return worst


def _example(model: Model, batch: int, height: int, width: int, dtype: np.dtype) -> Tensor:
    """Noise of the level of the training images, (B, C, H, W)."""
    rng = np.random.default_rng(0)
    planes = [
        rng.normal(c["mean"], c["std"], (batch, height, width)).clip(c["min"], c["max"]).astype(dtype)
        for c in model.task.statistics["image"]
    ]
    return torch.from_numpy(np.stack(planes, 1))


def _taken(x: Tensor, axis: int, n: int, there: int) -> Tensor:
    """The first `n` places along an axis, the last of those that are there repeated beyond."""
    return x.index_select(axis, torch.arange(n, device=x.device).clamp(max=there - 1))


def _missing(name: str) -> list[str]:
    return [package for package in NEEDED.get(name, ()) if not find_spec(package)]


def _told(difference: float | None) -> str:
    if difference is None:
        return f"not checked, for onnxruntime is not installed: {INSTALL}"
    return f"differs from the run by {difference:.1e} of the range at most"


@contextmanager
def _quietly() -> Iterator[None]:
    """Without what the exporters say of themselves: what counts is the comparison."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    before = [each.level for each in loggers]
    for each in loggers:
        each.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for each, level in zip(loggers, before, strict=True):
            each.setLevel(level)
