"""One trial, in a process of its own: an ordinary training, whose folder the search has chosen.

`python -m project.search.trial tune EXPERIMENT.yaml RUN_FOLDER [--resume] [--key value]`
"""

import os
import sys
from contextlib import nullcontext
from pathlib import Path

from filelock import FileLock, Timeout


def lock_of(folder: Path) -> FileLock:
    """Held by the process that trains in a run folder, as long as it lives."""
    place = folder.parent / ".locks"
    place.mkdir(parents=True, exist_ok=True)
    return FileLock(place / f"{folder.name}.training", timeout=0)


def main(words: list[str]) -> int:
    """Train, or go on with a training; returns the exit status, as `project.cli.main` does."""
    config, folder, logger, typed = Path(words[1]), Path(words[2]), words[3], words[4:]
    flags = {flag: flag in typed for flag in ("--resume", "--unchecked")}
    typed = [word for word in typed if word not in flags]
    further = os.environ.get("LOCAL_RANK", "0") != "0"
    try:
        with nullcontext() if further else lock_of(folder):
            # Heavy imports come after the lock: from here on, nobody else takes the trial for abandoned.
            from project.errors import UserError
            from project.runs.run_folder import RUN_FOLDER_VARIABLE, Run
            from project.training.train import train

            os.environ[RUN_FOLDER_VARIABLE] = str(folder)
            try:
                train(config, typed, Run(folder), logger, flags["--resume"], flags["--unchecked"])
            except UserError as error:
                print(f"error: {error}", file=sys.stderr)
                return 2
    except Timeout:
        print("error: another process trains in this folder", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print(str(stop) or "stopped", file=sys.stderr)
        return getattr(stop, "status", 130)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
