"""What takes workers seconds to import: the process that they are forked from imports this module.

The garbage collector is off meanwhile, which takes a fifth off the time, and afterwards leaves all
of it alone: none of it is garbage, and a worker that looked through it would copy its pages.
"""

from __future__ import annotations

import gc
import os
import threading

__all__: list[str] = []


def _end_without_parent(parent: int, done: threading.Event) -> None:
    """End this process as soon as the driver does: it would hold the driver's output open."""
    while not done.wait(0.05):
        if os.getppid() != parent:
            os._exit(1)


def _import() -> None:
    done = threading.Event()
    watch = threading.Thread(target=_end_without_parent, args=(os.getppid(), done), daemon=True)
    watch.start()
    gc.disable()
    try:
        import transformers.modeling_utils
        import transformers.models.bert.modeling_bert
        import transformers.models.roberta.modeling_roberta  # noqa: F401

        import competition_kit.harness.train_cell  # noqa: F401
    finally:
        gc.freeze()
        gc.enable()
        done.set()
        watch.join()  # a process with threads must not be forked


_import()
