"""`runs`: all runs of a competition as a leaderboard."""

from __future__ import annotations

import argparse
from pathlib import Path

from competition_kit.errors import InputError, did_you_mean

__all__ = ["add"]


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command's parser."""
    runs = commands.add_parser("runs", help="list runs as a leaderboard, best first")
    runs.add_argument("--data", type=Path, help="of this competition folder only")
    runs.add_argument("--out", type=Path, default=Path("runs"), help="where the runs are")
    runs.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    out: Path = options.out
    if not out.is_dir():
        raise InputError("no such folder", file=out, remedy="say where the runs are with --out")
    homes = sorted(path for path in out.iterdir() if path.is_dir() and path.name[0] != ".")
    if options.data is not None:
        from competition_kit.data.competition import slug

        name = slug(options.data.resolve().name)
        if out / name not in homes:
            known = did_you_mean(name, [path.name for path in homes]) if homes else ""
            raise InputError(
                f"no runs of {name!r}{known}", file=out, remedy="check --data and --out"
            )
        homes = [out / name]
    from competition_kit.results.leaderboard import leaderboards, render

    parts = []
    for home in homes:
        boards, unfinished = leaderboards(home)
        parts += [render(board) for board in boards]
        if unfinished:
            parts.append(f"{home.name}: not finished: {', '.join(unfinished)}")
    print("\n\n".join(parts) or f"no runs in {out}")
    return 0
