"""Which of torch's kernels compute."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from competition_kit.training.journal import TrainingError

__all__ = ["kernels", "without_cudnn_attention"]


@contextmanager
def kernels(*, deterministic: bool) -> Iterator[None]:
    """Choose between kernels that are fast and those that give the same bits every time.

    Raises:
        TrainingError: if something inside the block has no deterministic kernel.
    """
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS asks for
    torch.use_deterministic_algorithms(deterministic)
    try:
        yield
    except RuntimeError as error:
        if "does not have a deterministic implementation" not in str(error):
            raise
        raise TrainingError(
            f"--deterministic: {str(error).partition(',')[0]}: leave the flag out, or use "
            "--device cpu"
        ) from error


@contextmanager
def without_cudnn_attention() -> Iterator[None]:
    """Leave out cuDNN's attention, which torch takes first for half precision on newer GPUs.

    Some of its kernels know dropout probabilities in sixteenths only (pytorch pull request 174245),
    and it makes a plan for every new shape of a batch.
    """
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)
