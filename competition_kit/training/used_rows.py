"""Train only those rows of the embedding table whose tokens occur in the competition.

A competition uses 4,000 to 14,000 of BERT's 30,522 word pieces, and about as many of XLM-R's
250,002. The other rows get no gradient, ever, yet they are zeroed, clipped and updated in every
step, and Adam keeps two moments of each. Without them the same numbers come out (up to the order in
which a norm is summed), for less memory and less time.
"""

from __future__ import annotations

import logging
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

if TYPE_CHECKING:
    from competition_kit.training.model import EncoderModel

__all__ = ["UsedRows", "keep_used_rows", "put_rows_back"]

log = logging.getLogger(__name__)


class UsedRows(nn.Module):
    """An embedding that has some rows of a table, looked up by the tokens' own ids.

    Args:
        table: the whole embedding.
        used: [U] distinct token ids, in ascending order; others raise IndexError.

    Attributes:
        weight: [U, H].
        rest: norm of the rows that are not here.
        padding_idx: id of the token whose row is not trained, as in `nn.Embedding`.
    """

    row_of: Tensor
    rest: Tensor

    def __init__(self, table: nn.Embedding, used: np.ndarray) -> None:
        super().__init__()
        self.table = [table]  # in a list: no submodule, its weight is no parameter of the model
        self.used = torch.from_numpy(used.astype(np.int64))
        self.weight = nn.Parameter(table.weight.detach()[self.used.to(table.weight.device)])
        self.padding_idx = table.padding_idx
        row_of = torch.full((table.num_embeddings,), len(used))  # beyond the last row: an error
        row_of[self.used] = torch.arange(len(used))
        self.register_buffer("row_of", row_of, persistent=False)
        norms = table.weight.detach().norm(dim=1)
        norms[self.used.to(norms.device)] = 0.0
        self.register_buffer("rest", norms.norm(), persistent=False)
        padding = None if table.padding_idx is None else int(row_of[table.padding_idx])
        self._padding_row = padding if padding is not None and padding < len(used) else None

    def forward(self, input_ids: Tensor) -> Tensor:
        """Return [B, T, H] for token ids [B, T]."""
        return functional.embedding(self.row_of[input_ids], self.weight, self._padding_row)

    def whole(self) -> nn.Embedding:
        """Return the table with the rows as they are now; the others as they were."""
        (table,) = self.table
        device = self.weight.device
        table.to(device)
        with torch.no_grad():
            table.weight[self.used.to(device)] = self.weight
        return table


def keep_used_rows(model: EncoderModel, token_ids: np.ndarray) -> bool:
    """Put `UsedRows` in place of the word embedding; return whether the encoder allows it.

    Call it before the optimizer exists and before the model goes to its device (the other rows
    stay where they are). A trick whose numbers would change with it says so by `whole_table`.

    Args:
        token_ids: of all rows that will be trained on or predicted, repeated or not, padding too.
    """
    table = model.get_input_embeddings()
    owners = sum(
        any(own is table.weight for own in module.parameters(recurse=False))
        for module in model.modules()
    )
    if type(table) is not nn.Embedding or _is_special(table) or owners != 1:
        _say_once(type(model.encoder).__name__)
        return False
    used = np.unique(token_ids)
    if len(used) < table.num_embeddings:
        model.encoder.set_input_embeddings(UsedRows(table, used))  # type: ignore[operator]
    return True


def put_rows_back(model: EncoderModel) -> None:
    """Undo `keep_used_rows`, with the trained rows; nothing if it was not done."""
    embedding = model.get_input_embeddings()
    if isinstance(embedding, UsedRows):
        model.encoder.set_input_embeddings(embedding.whole())  # type: ignore[operator]


@lru_cache
def _say_once(encoder: str) -> None:
    """Warn in the first cell of a process only."""
    log.warning(
        "%s looks tokens up in its own way: its whole embedding table is trained, which takes more "
        "time and memory",
        encoder,
    )


def _is_special(table: nn.Embedding) -> bool:
    """Whether rows influence each other, or gradients have another form."""
    return table.max_norm is not None or table.scale_grad_by_freq or table.sparse
