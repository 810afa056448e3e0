"""A training step by memory layout, precision, optimizer kernel and compiler; activations that are computed again."""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import project  # noqa: F401 - first: it lets threads that wait sleep, which is decided when torch is loaded

# isort: split
import harness
import torch
from harness import Goal, Report, Table
from torch import nn

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PLAIN = "float32, channels first, loop over parameters"
LAST: dict[str, Any] = {"last": True}
VARIANTS: dict[str, dict[str, Any]] = {
    PLAIN: {},
    "channels last": LAST,
    "channels last, fused AdamW": LAST | {"fused": True},
    "bf16": {"bf16": True},
    "bf16, channels last, fused AdamW": LAST | {"fused": True, "bf16": True},
}
ON_GPU: dict[str, dict[str, Any]] = {
    "channels last, fused AdamW, TF32": LAST | {"fused": True, "tf32": True},
    "channels last, fused AdamW, TF32, cudnn.benchmark": LAST | {"fused": True, "tf32": True, "search": True},
}
SHIPPED = list(ON_GPU)[-1] if DEVICE == "cuda" else "channels last, fused AdamW"


def make_net(name: str, tiny: bool = False) -> nn.Module:
    """The networks of unet_mse and unet_dice."""
    from project.models.unet import UNet

    torch.manual_seed(0)
    if name == "unet_mse":
        return UNet(1, 1, width=4 if tiny else 16, depth=3)
    import segmentation_models_pytorch as smp

    return smp.Unet("resnet18", encoder_weights=None, in_channels=1, classes=1)


class Step:
    """Forward, backward and optimizer on one batch; a call returns the seconds that it took."""

    def __init__(
        self,
        net: nn.Module,
        batch: int,
        size: int,
        last: bool = False,
        bf16: bool = False,
        fused: bool = False,
        tf32: bool = False,
        search: bool = False,
        compile: bool = False,
    ) -> None:
        layout = torch.channels_last if last else torch.contiguous_format
        self.net = net.to(DEVICE, memory_format=layout).train()
        self.images = torch.randn(batch, 1, size, size).to(DEVICE, memory_format=layout)
        self.optimizer = torch.optim.AdamW(self.net.parameters(), lr=1e-3, fused=fused or None)
        self.bf16, self.tf32, self.search = bf16, tf32, search
        if compile:
            self.net.compile()

    def __call__(self) -> float:
        torch.set_float32_matmul_precision("high" if self.tf32 else "highest")
        torch.backends.cudnn.benchmark = self.search
        torch.backends.cudnn.allow_tf32 = True
        _wait()
        start = time.perf_counter()
        with torch.autocast(DEVICE, torch.bfloat16, enabled=self.bf16):
            output = self.net(self.images)
        self.optimizer.zero_grad()
        nn.functional.mse_loss(output.float(), self.images).backward()
        self.optimizer.step()
        _wait()
        return time.perf_counter() - start


def _wait() -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def updates(net: nn.Module, fused: bool) -> Callable[[], float]:
    """An optimizer's part of a step, ten times."""
    net = net.to(DEVICE)
    for parameter in net.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-6, fused=fused or None)

    def run() -> float:
        _wait()
        start = time.perf_counter()
        for _ in range(10):
            optimizer.step()
        _wait()
        return time.perf_counter() - start

    return run


def peak(name: str, again: bool, batch: int, size: int) -> float:
    """Bytes that a step takes beyond what the process holds before it."""
    from project.models.activation_checkpointing import checkpoint_activations

    net = make_net(name)
    if again:
        checkpoint_activations(net)
    step = Step(net, 1, 64, last=True)
    step()  # loads what is loaded once, and makes the optimizer's state
    images = torch.randn(batch, 1, size, size)
    step.images = images.to(DEVICE, memory_format=torch.channels_last)
    if DEVICE == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return torch.cuda.max_memory_allocated() - before
    before = _status("VmRSS")
    step()
    # Not `ru_maxrss`, which begins with the peak of the process that started this one.
    return _status("VmHWM") - before


def _status(name: str) -> float:
    """Bytes of this process, as Linux tells them."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024.0 * next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def peak_apart(name: str, again: bool, batch: int, size: int) -> float:
    """The same in a process of its own."""
    command = [sys.executable, __file__, name, str(int(again)), str(batch), str(size)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout.splitlines()[-1]))


def compiled(batch: int, size: int, rounds: int) -> list[str | int | float] | None:
    """The network of unet_mse compiled: first step and ratio; None where it cannot be compiled."""
    options = VARIANTS[SHIPPED] if SHIPPED in VARIANTS else ON_GPU[SHIPPED]
    step = Step(make_net("unet_mse"), batch, size, **options, compile=True)
    try:
        first = step()
    except torch._dynamo.exc.BackendCompilerFailed:  # no compiler on this machine
        return None
    plain = Step(make_net("unet_mse"), batch, size, **options)
    seconds = harness.alternate({"plain": plain, "compiled": step}, rounds)
    return ["torch.compile on top (unet_mse)", harness.ratio(seconds, "plain", "compiled"), f"first step {first:.0f} s"]


def measure(quick: bool) -> Report:
    """Steps of unet_mse and unet_dice on 8 x 128 x 128, variant by variant in turn."""
    batch, size, rounds = (2, 32, 1) if quick else (8, 128, 5)
    names = ["unet_mse"] if quick else ["unet_mse", "unet_dice"]
    report = Report()
    variants = VARIANTS | (ON_GPU if DEVICE == "cuda" else {})
    ratios: dict[str, dict[str, float]] = {}
    milliseconds: dict[str, float] = {}
    for name in names:
        steps = {key: Step(make_net(name, quick), batch, size, **options) for key, options in variants.items()}
        seconds = harness.alternate(steps, rounds)
        del steps
        ratios[name] = {key: harness.ratio(seconds, PLAIN, key) for key in variants}
        milliseconds[name] = 1000 * statistics.median(seconds[PLAIN])
        report.goals.append(
            Goal(
                f"a training step of {name} on {_here()}: {SHIPPED}, against plain float32",
                ratios[name][SHIPPED],
                "≥ 1.1",
            )
        )
    rows: list[list[str | int | float]] = [
        [key, *(ratios[name][key] for name in names), "yes" if key == SHIPPED else ""] for key in variants
    ]
    told = ", ".join(f"{name} {value:.0f} ms" for name, value in milliseconds.items())
    report.tables.append(
        Table(
            f"Speed of a training step on {_here()}, as a multiple of plain float32",
            ["variant", *names, "shipped"],
            rows,
            f"Batches of {batch} x 1 x {size} x {size}; plain: {told}. `trainer.precision: bf16-mixed` is a line "
            "to try: what bf16 gives differs from one processor to the next.",
        )
    )
    parts = {
        f"{name}, {'fused' if fused else 'loop'}": updates(make_net(name, quick), fused)
        for name in names
        for fused in (False, True)
    }
    seconds = harness.alternate(parts, rounds)
    extra: list[list[str | int | float]] = [
        [
            f"fused AdamW, its part of a step ({name})",
            harness.ratio(seconds, f"{name}, loop", f"{name}, fused"),
            f"{100 * statistics.median(seconds[f'{name}, fused']):.1f} ms",
        ]
        for name in names
    ]
    if not quick and (row := compiled(batch, size, 3)):
        extra.append(row)
    report.tables.append(Table("", ["what", "times as fast", "takes"], extra))
    report.tables.append(_recomputation(report, names, quick))
    return report


def _recomputation(report: Report, names: list[str], quick: bool) -> Table:
    from project.models.activation_checkpointing import checkpoint_activations

    batch, size, rounds = (2, 64, 1) if quick else (2, 512, 3)
    rows: list[list[str | int | float]] = []
    for name in names:
        again = make_net(name)
        checkpoint_activations(again)
        steps = {"kept": Step(make_net(name), batch, size, last=True), "again": Step(again, batch, size, last=True)}
        seconds = harness.alternate(steps, rounds)
        del steps
        peaks = [peak_apart(name, on, batch, size) for on in (False, True)]
        slower = harness.ratio(seconds, "again", "kept")
        rows.append([name, peaks[0] / 1e6, peaks[1] / 1e6, peaks[1] / peaks[0], slower])
        report.goals += [
            Goal(
                f"checkpoint_activations ({name}, {batch} crops of {size} px): peak memory of a step",
                rows[-1][3],
                "≤ 0.6",
            ),
            Goal(f"checkpoint_activations ({name}): time of a step", slower, "≤ 1.4"),
        ]
    return Table(
        "Activations kept, or computed again (`model.init_args.checkpoint_activations: true`)",
        ["network", "kept, MB", "computed again, MB", "memory", "time"],
        rows,
        f"Of a step on {batch} crops of {size} px, beyond what the process holds before it. Losses and gradients are "
        "the same, bit for bit.",
    )


def _here() -> str:
    return "a GPU" if DEVICE == "cuda" else "a CPU"


if __name__ == "__main__":
    print(json.dumps(peak(sys.argv[1], sys.argv[2] == "1", int(sys.argv[3]), int(sys.argv[4]))))
