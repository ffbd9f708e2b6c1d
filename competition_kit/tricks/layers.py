"""Where the layers of an encoder are: for tricks that treat them by depth."""

from __future__ import annotations

from typing import TYPE_CHECKING

from competition_kit.errors import InputError

if TYPE_CHECKING:
    from torch import nn

__all__ = ["encoder_layers"]


def encoder_layers(encoder: nn.Module) -> list[nn.Module]:
    """Return the transformer layers from the lowest to the highest.

    Found by shape, not by name: the longest list of modules of one class inside the encoder. Where
    layers share their weights (ALBERT) that is a list of one, applied several times.

    Raises:
        InputError: if there is no such list.
    """
    from torch import nn

    lists = [module for module in encoder.modules() if isinstance(module, nn.ModuleList)]
    depth = getattr(encoder.config, "num_hidden_layers", None)
    uniform = [entry for entry in lists if len({type(layer) for layer in entry}) == 1]
    if not uniform:
        raise InputError(
            f"no list of layers found in {type(encoder).__name__}",
            remedy="llrd and reinit need an encoder made of a stack of layers",
        )
    exact = [entry for entry in uniform if len(entry) == depth]
    return max((list(entry) for entry in exact or uniform), key=len)
