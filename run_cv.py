"""Entry point: `python run_cv.py --adv fgm`. Everything else lives in `competition_kit`."""

import gc
import sys

from competition_kit.cli import main

if __name__ == "__main__":  # worker processes import this file again; they must not start a run
    # All that is imported stays, and training leaves no tensor in a cycle (tests/harness/
    # test_cycles.py): to look for cycles is rarely worth its time, and never at the end.
    gc.set_threshold(50_000)
    code = main()
    gc.freeze()
    sys.exit(code)
