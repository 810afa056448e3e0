"""`python tests/benchmarks`: run benchmarks, and write their figures into README.md."""

import argparse
import importlib
import sys
import time

from harness import NAMES, write_section


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(prog="python tests/benchmarks", description=__doc__)
    usual = [name for name in NAMES if name not in ("gpu", "minutes")]
    parser.add_argument("names", nargs="*", metavar="NAME", default=usual, help=f"of {', '.join(NAMES)}")
    parser.add_argument("--quick", action="store_true", help="tiny data, one round: whether it runs; nothing is kept")
    parser.add_argument("--datasets", nargs="+", help="of `minutes`: names of files in configs/data (yeast)")
    parser.add_argument("--minutes", nargs="+", type=float, help="of `minutes`: lengths of the trainings (1 3 10)")
    options = parser.parse_args()
    if unknown := set(options.names) - set(NAMES):
        parser.error(f"there is no benchmark {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    for name in options.names:
        print(f"\n{name}", flush=True)
        start = time.perf_counter()
        chosen = {key: getattr(options, key) for key in ("datasets", "minutes") if getattr(options, key)}
        report = importlib.import_module(name).measure(options.quick, **(chosen if name == "minutes" else {}))
        print(report.markdown(), flush=True)
        if not options.quick:
            write_section(name, report, time.perf_counter() - start)


if __name__ == "__main__":
    sys.exit(main())
