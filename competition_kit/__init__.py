"""competition-kit: honest K-fold fine-tuning of text encoders, adversarial training included.

The package imports nothing heavy by itself; `competition_kit.cli` is the front door, and
`docs/architecture.md` shows the way through the house.
"""

__all__ = ["__version__"]

__version__ = "0.1.0"
