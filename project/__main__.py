"""`python -m project`."""

import os
import sys

# Waiting threads sleep instead of spinning: where other programs want the cores too, a training step was measured 20
# times slower otherwise. Alone it is a tenth faster: set OMP_WAIT_POLICY=ACTIVE on a machine of your own. torch and
# scikit-learn read it when they are loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def main() -> int:
    """Run the command line."""
    from project.cli import main as run

    return run()


if __name__ == "__main__":
    sys.exit(main())
