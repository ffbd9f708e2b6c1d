"""Entry point: `python run_cv.py --adv fgm`. Everything else lives in `competition_kit`."""

import gc
import sys

from competition_kit.cli import main

if __name__ == "__main__":  # worker processes import this file again; they must not start a run
    code = main()
    gc.freeze()  # at the end Python would look for cycles in all that torch imported: 1.4 s
    sys.exit(code)
