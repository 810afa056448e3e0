"""Model card of a run, `card.md`: what it was made from, what was measured, and what it was not tried on.

After Mitchell et al., "Model cards for model reporting", 2019, https://doi.org/10.1145/3287560.3287596.
"""

from collections.abc import Iterator
from typing import Any

from project.files import write_text
from project.formatting import format_number
from project.models.checkpoint_files import best_checkpoint, read_file
from project.results.run_results import RunResults, read_results
from project.results.statistics import Rows, interval, per_sample_column, replicates
from project.results.tables import Table
from project.runs.run_folder import Run

TITLES = {"val": "Validation, on which the checkpoint was chosen", "test": "Test"}


def write_card(run: Run) -> None:
    """Write card.md of a run that was evaluated at least on the validation split; nothing for other runs."""
    results = [read_results(run, split) for split in TITLES if run.metrics_file(split).is_file()]
    if results:
        data = read_file(best_checkpoint(run.folder), "checkpoint").get("data", {})
        write_text(run.folder / "card.md", "\n".join(_lines(results, data)) + "\n")


def _lines(results: list[RunResults], data: dict[str, Any]) -> Iterator[str]:
    identity, provenance = results[0].identity, results[0].provenance
    yield f"# {identity.experiment} on {identity.dataset}\n"
    yield f"A {identity.task} model with {identity.parameters:,} parameters; run {identity.name}.\n\n## Data\n"
    yield f"- dataset `{identity.dataset}`; content hashes: {_listed(provenance.data_hash)}"
    yield from _described_data(data)
    for result in results:
        yield f"\n## {TITLES[result.split]}\n"
        yield from _measured(result)
    yield "\n## Not tried\n"
    yield "- images of other datasets: other instruments, magnifications, stains, exposures"
    yield "- values outside of the ranges above; other numbers or orders of channels"
    if len(results) == 1:
        yield f"- the test split: `make eval RUN={results[0].run.quoted} SPLIT=test`"
    yield "\n## How it was made\n"
    yield f"- commit {identity.commit or 'unknown'}{' with uncommitted changes' if identity.dirty else ''}"
    yield f"- command `{provenance.command}`; all settings: config.yaml"
    yield f"- {_listed({**provenance.trained, 'seconds': round(provenance.seconds or 0), 'seed': identity.seed})}"
    yield f"- {_listed(provenance.versions)}"
    yield from (f"- starts from: {line}" for line in provenance.pretrained)
    yield "\n## License and contact\n"
    yield "To be filled in by whoever publishes the model: license of the weights, of the data, author, contact."


def _described_data(data: dict[str, Any]) -> Iterator[str]:
    """Channels, classes, and the range of the training values of each channel."""
    channels = data.get("channels", {})
    yield from (f"- channels of the {role}: {', '.join(names)}" for role, names in channels.items() if len(names))
    yield from (f"- classes of the {role}: {', '.join(names)}" for role, names in data.get("classes", {}).items())
    for role in ("image", "target"):
        for name, channel in zip(channels.get(role, ()), data.get("statistics", {}).get(role, ()), strict=False):
            low, high = (format_number(channel["percentiles"][key]) for key in ("1", "99"))
            yield f"- training values of {name}: {low} to {high} (1st to 99th percentile, {channel['dtype']})"


def _measured(result: RunResults) -> Iterator[str]:
    n_groups = len(set(result.groups))
    yield f"{result.record.n_samples} images of {n_groups} groups; the intervals are of 95 %, over groups of images.\n"
    names, rows = [name for name in result.main_metrics if name in result.metrics], []
    # Of metrics that are the mean of a column; those of others are in the comparison of runs.
    columns = {name: per_sample_column(name, result.metrics[name], result.rows) for name in names}
    means = {name: result.rows[column] for name, column in columns.items() if column}
    resampled = replicates(means, result.units, _means) if means else {}
    for name in names:
        ends = interval(resampled[name], result.n_units) if name in resampled else None
        between = f"{format_number(ends[0])} to {format_number(ends[1])}" if ends else ""
        undefined = str(result.record.undefined.get(name) or "")
        rows.append([name, format_number(result.metrics[name]), between, undefined])
    yield Table("", ["metric", "value", "interval", "undefined values"], rows).markdown()
    if result.split == "test":
        yield f"\nTest evaluations so far: {len(result.provenance.test_evaluations)}."


def _means(rows: Rows) -> dict[str, float]:
    return {name: row.nanmean().item() for name, row in rows.items()}


def _listed(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())
