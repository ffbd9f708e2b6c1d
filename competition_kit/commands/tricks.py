"""`tricks`: what there is to choose from, as a reference work."""

from __future__ import annotations

import argparse

from competition_kit.strategies import STRATEGIES
from competition_kit.tricks import TRICKS

__all__ = ["add"]


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command's parser."""
    tricks = commands.add_parser(
        "tricks", help="list strategies and tricks, or print one's method card"
    )
    tricks.add_argument("name", nargs="?", choices=(*STRATEGIES, *TRICKS), metavar="NAME")
    tricks.add_argument("--markdown", action="store_true", help="all cards, as docs/tricks.md")
    tricks.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from competition_kit.tricks.cards import card, catalogue, markdown

    if options.markdown:
        print(markdown(), end="")
    elif options.name:
        print(card(options.name))
    else:
        print(catalogue())
    return 0
