"""`python tests/benchmarks`: run the benchmarks, keep their figures, and write README.md."""

import argparse
import importlib
import sys
import time
from pathlib import Path

import harness
from harness import NAMES


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(prog="python tests/benchmarks", description=__doc__)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; all but the last two by default"
    )
    parser.add_argument("--quick", action="store_true", help="tiny data, one round: whether it runs; nothing is kept")
    parser.add_argument("--datasets", nargs="+", help="of `minutes`: names of files in configs/data (yeast)")
    parser.add_argument("--minutes", nargs="+", type=float, help="of `minutes`: lengths of the trainings (1 3 10)")
    options = parser.parse_args()
    names = options.names or [name for name in NAMES if name not in ("gpu", "minutes")]
    if unknown := set(names) - set(NAMES):
        parser.error(f"there is no benchmark {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    for name in names:
        print(f"\n{name}", flush=True)
        start = time.perf_counter()
        chosen = {key: getattr(options, key) for key in ("datasets", "minutes") if getattr(options, key)}
        report = importlib.import_module(name).measure(options.quick, **(chosen if name == "minutes" else {}))
        for goal in report.goals:
            print(f"  {goal.what}: {harness.format_value(goal.value)}{goal.unit and ' ' + goal.unit} (aim {goal.aim})")
        for table in report.tables:
            print("\n" + harness.markdown(table.title, table.columns, table.rows, table.note), flush=True)
        if not options.quick:
            harness.keep(name, report, time.perf_counter() - start)
    if not options.quick:
        (Path(__file__).parent / "README.md").write_text(harness.details(NAMES))


if __name__ == "__main__":
    sys.exit(main())
