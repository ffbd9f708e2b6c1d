"""Entry point: `python run_cv.py --adv fgm`. Everything else lives in `competition_kit`."""

import sys

from competition_kit.cli import main

if __name__ == "__main__":  # worker processes import this file again; they must not start a run
    sys.exit(main())
