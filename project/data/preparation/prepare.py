"""`make data`: raw images -> data/processed/<dataset>/{train,val,test}.h5, complete or not at all."""

import inspect
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from rich.console import Console

from project.data.config import PROCESSED, SPLITS, DatasetConfig
from project.data.drift import measure_drift
from project.data.preparation.croissant import describe_dataset
from project.data.preparation.find import RawDataset
from project.data.preparation.outdated import list_raw_files
from project.data.preparation.plan import find_and_plan
from project.data.preparation.shards import Shard
from project.data.preparation.workers import start_workers
from project.data.preparation.write import join_splits, write_without_leaks
from project.data.raw.samples import listed_problems
from project.data.raw.sources import import_object
from project.data.store import SplitReader
from project.errors import UserError

MAX_PRINTED_NOTES = 12


def prepare(
    name: str,
    config: DatasetConfig,
    processed: Path = PROCESSED,
    console: Console | None = None,
    processes: int | None = None,
) -> Path:
    """Prepare one dataset, and return its folder: find, check headers, split, write shards, check for leakage, join.

    After an interruption, finished shards are kept in a hidden folder, and the next call resumes from there. The result
    is the same, byte for byte, for any number of processes (see `start_workers`). An earlier version is replaced when
    it is complete. Progress and warnings are printed on the console.

    Raises:
        UserError: Anything about the raw files that does not fit; an earlier version is then untouched.
    """
    console = console or Console()
    final = _final_folder(processed / name, Path(config.raw))
    partial = final.with_name(f".{final.name}.partial")
    with _working_folder(final, partial):
        generate_raw_files(config, console)
        with start_workers(console, processes) as workers:
            raw, shards = find_and_plan(config, workers, partial)
            raw_files = list_raw_files(config, (path for shard in shards for s in shard.samples for path in s.paths))
            _check_disk_space(shards, final.parent)
            pairs = processed / f"{name}.near_duplicates.csv"
            written, warnings = write_without_leaks(shards, config, workers, raw.problems, pairs)
        join_splits(partial, written, raw, config, raw_files)
        readers = {split: SplitReader(partial / f"{split}.h5") for split in written if split in SPLITS}
        warnings += measure_drift(readers).describe()
        describe_dataset(partial, name, readers)
        _replace(partial, final)
    _print_notes(raw, raw.problems.warnings + warnings, console)
    return processed / name


def _check_disk_space(shards: list[Shard], processed: Path) -> None:
    """Refuse data that would fill the disk hours later: shards, and their copies in the split files."""
    needed = sum(shard.n_bytes * (2 - shard.record.is_file()) for shard in shards)
    free = shutil.disk_usage(processed).free
    if needed > free and shards[0].settings.compression == "none":  # compressed files may take less
        raise UserError(
            f"{needed / 1e9:.3g} GB are to be written below {processed}, and {free / 1e9:.3g} GB are free; make room, "
            "or set `compression: blosc2`"
        )


def _final_folder(folder: Path, raw: Path) -> Path:
    """The folder, where a link leads to; refuse to replace raw files, or what `make data` did not make."""
    try:
        final = folder.resolve() if folder.is_symlink() else folder
    except (OSError, RuntimeError) as error:
        raise UserError(f'the link "{folder}" leads nowhere: {error}') from error
    if raw.exists() and raw.resolve().is_relative_to(final.resolve()):
        raise UserError(f'the raw files in "{raw}" are inside "{final}", which is replaced; move them')
    if final.is_dir() and not any((final / f"{split}.h5").is_file() for split in SPLITS):
        names = [path.name for path in sorted(final.iterdir()) if not path.name.startswith(".")]
        if foreign := [name for name in names if name != "inspect" and not name.endswith(".h5")]:
            raise UserError(
                f'"{final}" holds files that are no prepared data, such as "{foreign[0]}"; move them, or give the '
                "dataset another name"
            )
    return final


@contextmanager
def _working_folder(final: Path, partial: Path) -> Iterator[None]:
    """Lock a dataset; finished shards in `partial` are kept for the next time."""
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(final.with_name(f".{final.name}.lock"), timeout=0):
            if _old(final).exists() and not final.exists():
                _old(final).rename(final)  # a replacement was interrupted between its two renames
            for leftover in partial.rglob(".*.partial"):
                leftover.unlink()
            try:
                yield
            finally:
                if not any(partial.rglob("*.result")):
                    shutil.rmtree(partial, ignore_errors=True)
    except Timeout:
        raise UserError(f"another process is preparing {final}; wait for it, or stop it") from None
    except OSError as error:
        n = sum(1 for _ in partial.rglob("*.result"))
        kept = f"\n{n} finished parts are kept in {partial}; run the same command again to resume." if n else ""
        if error.filename and not Path(error.filename).absolute().is_relative_to(final.parent.absolute()):
            raise UserError(f'"{error.filename}" could not be read: {error.strerror}{kept}') from error
        raise UserError(f"the prepared data could not be written below {final.parent}: {error}{kept}") from error


def generate_raw_files(config: DatasetConfig, console: Console) -> None:
    """Make the raw files of a demo dataset if they do not exist."""
    raw = Path(config.raw)
    if config.generate is None or raw.exists():
        return
    partial, function = raw.with_name(f".{raw.name}.partial"), import_object(config.generate, "generate")
    try:
        inspect.signature(function).bind(partial, **config.generate_arguments)
    except (TypeError, ValueError) as error:
        raise UserError(f'generate: "{config.generate}" could not be called: {error}') from error
    console.print(f"Making the demo images in {raw} ...")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        function(partial, **config.generate_arguments)
        partial.rename(raw)
    except OSError as error:
        raise UserError(f"the demo images could not be written to {raw}: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _replace(partial: Path, final: Path) -> None:
    """Put the complete folder in its place; the old one goes last."""
    shutil.rmtree(_old(final), ignore_errors=True)
    if final.exists():
        final.rename(_old(final))
    partial.rename(final)
    shutil.rmtree(_old(final), ignore_errors=True)


def _old(final: Path) -> Path:
    return final.with_name(f".{final.name}.old")


def _print_notes(raw: RawDataset, warnings: list[str], console: Console) -> None:
    notes, skipped = raw.notes + raw.problems.notes, raw.problems.skipped
    lines = [f"note: {note}" for note in notes[:MAX_PRINTED_NOTES]]
    if (n := len(notes) - MAX_PRINTED_NOTES) > 0:
        lines.append(f"note: ... and {n} more; all are in the attribute `notes` of the files")
    if skipped:
        lines.append(f"{len(skipped)} left out (all are listed in the files, `skipped`):\n{listed_problems(skipped)}")
    for line in lines + [f"warning: {warning}" for warning in warnings]:
        console.print(line, markup=False)
