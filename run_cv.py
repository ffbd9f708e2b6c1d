"""Entry point: `python run_cv.py --adv fgm`. Everything else lives in `competition_kit`."""

import gc
import sys

from competition_kit.cli import main

if __name__ == "__main__":  # worker processes import this file again; they must not start a run
    # A training step leaves no cycles behind; to look for some in all that is imported would take
    gc.set_threshold(50_000)  # 0.5 s of the start
    code = main()
    gc.freeze()  # and 1.4 s of the end
    sys.exit(code)
