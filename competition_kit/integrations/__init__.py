"""The kit's strategies inside other people's loops.

`AdversarialTrainer` is transformers' Trainer with a `strategy=` argument. `ModelStep` is one batch
of any loop, plain PyTorch's or accelerate's, as strategies want to see it. `docs/your_own_loop.md`
shows both. Only this package knows of transformers' Trainer; nothing else imports it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from competition_kit.integrations.model_step import ModelStep

if TYPE_CHECKING:
    from competition_kit.integrations.trainer import AdversarialTrainer

__all__ = ["AdversarialTrainer", "ModelStep"]


def __getattr__(name: str) -> Any:
    # late, because it needs accelerate and takes seconds, which a plain loop need not wait for
    if name == "AdversarialTrainer":
        from competition_kit.integrations.trainer import AdversarialTrainer

        return AdversarialTrainer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
