"""The command line: flags, commands and what is printed; nothing else.

Nothing heavy is imported before it is needed, so that `--help` and a typo answer at once.
"""

from __future__ import annotations

import argparse
import logging
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from competition_kit import __version__
from competition_kit.data.rules import SCHEMES
from competition_kit.errors import InputError, KitError, did_you_mean
from competition_kit.model_source import DEFAULT_MODEL, ModelSource, find_model
from competition_kit.specs import format_spec, parse_spec
from competition_kit.strategies import STRATEGIES, Strategy
from competition_kit.strategies.base import layers, remarks
from competition_kit.training.recipe import Pooling, Precision, Recipe, Schedule, default_lr
from competition_kit.tricks import TRICKS, Trick, format_tricks, parse_tricks
from competition_kit.tricks.averages import CheckpointAverage
from competition_kit.tricks.pretrain import Pretrain

if TYPE_CHECKING:
    from competition_kit.data.competition import Competition
    from competition_kit.harness.cross_validation import CVResult, Plan
    from competition_kit.harness.run_folder import RunFolder

__all__ = ["main"]

log = logging.getLogger("competition_kit")

DATA = Path("data")
DEFAULT_COMPETITION = "tweets"
MAX_LENGTH = 128  # tokens, unless the encoder takes fewer
PREPARED = ("tweets", "tweets_full", "movies", "amazon", "nyt")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return the exit code: 0, 1 for failed work, 2 for bad input."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    parser = _parser()
    if not arguments or (
        arguments[0].startswith("-") and arguments[0] not in ("-h", "--help", "--version")
    ):
        arguments.insert(0, "cv")  # `run_cv.py --adv fgm` is `run_cv.py cv --adv fgm`
    try:
        options = parser.parse_args(_with_settings(arguments))
        _talk()
        return options.run(options)
    except KitError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from here", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has gone (`| head`)
        sys.stderr.close()
        return 141
    except OSError as error:  # a path that is too long, a disk that fails
        if error.filename is None:
            raise
        print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
        return InputError.exit_code


def _talk() -> None:
    """Send the kit's log to stderr, warnings marked as such, in step with the progress bars."""
    from competition_kit.progress import BarHandler

    log.handlers[:] = [BarHandler()]
    log.setLevel(logging.INFO)
    log.propagate = False


# -- flags --------------------------------------------------------------------------------------


def _count(least: int) -> Callable[[str], int]:
    def whole_number(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
        if value < least:
            raise argparse.ArgumentTypeError(f"{value} is less than {least}")
        return value

    return whole_number


def _ratio(below_one: bool) -> Callable[[str], float]:
    def number(text: str) -> float:
        value = _number(text)
        if not 0.0 <= value < (1.0 if below_one else float("inf")):
            raise argparse.ArgumentTypeError(
                f"{text} is not {'at least 0 and below 1' if below_one else '0 or more'}"
            )
        return value

    return number


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None


def _positive(text: str) -> float:
    value = _number(text)
    if not 0.0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="run_cv.py",
        description="K-fold cross-validation of text encoders with adversarial training. Without a "
        "command it cross-validates: run_cv.py --adv fgm (see: run_cv.py cv --help).",
    )
    parser.add_argument("--version", action="version", version=f"competition-kit {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    cv = commands.add_parser(
        "cv",
        allow_abbrev=False,  # an abbreviated flag would escape the settings file's reader
        help="cross-validate, predict the test rows, write a submission (the default command)",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    _add_cv_flags(cv)
    cv.set_defaults(run=_cv)

    make = commands.add_parser("prepare", help="make real competition folders under data/")
    make.add_argument("name", nargs="+", choices=PREPARED, metavar="NAME", help=", ".join(PREPARED))
    make.add_argument("--data", type=Path, default=DATA, help="where to put them (default: data)")
    make.set_defaults(run=_prepare)

    score = commands.add_parser("score", help="score a run's submission on held-back labels")
    score.add_argument("folder", type=Path, metavar="RUN", help="a run folder: runs/tweets/...")
    score.set_defaults(run=_score)

    report = commands.add_parser("report", help="write a run's report.html again")
    report.add_argument("folder", type=Path, metavar="RUN", help="a run folder: runs/tweets/...")
    report.set_defaults(run=_report)

    tricks = commands.add_parser(
        "tricks", help="list strategies and tricks, or print one's method card"
    )
    tricks.add_argument("name", nargs="?", choices=(*STRATEGIES, *TRICKS), metavar="NAME")
    tricks.add_argument("--markdown", action="store_true", help="all cards, as docs/tricks.md")
    tricks.set_defaults(run=_tricks)
    return parser


def _add_cv_flags(cv: argparse.ArgumentParser) -> None:
    recipe = Recipe()
    what = cv.add_argument_group("what")
    what.add_argument(
        "--data",
        type=Path,
        default=DATA / DEFAULT_COMPETITION,
        help="competition folder",
    )
    what.add_argument(
        "--adv",
        default="none",
        metavar="STRATEGY",
        help=f'{", ".join(STRATEGIES)}; options in brackets, wrappers with +: "neftune(alpha=5)+fgm"',
    )
    what.add_argument(
        "--tricks",
        default="",
        metavar="LIST",
        help='losses, starts, rates, averages: "rdrop(alpha=0.5), ema, noisytune"',
    )
    what.add_argument(
        "--settings", type=Path, help="TOML file with flags as keys; flags given here go before it"
    )
    what.add_argument("--model", default=DEFAULT_MODEL, help="model folder or hub name")
    what.add_argument(
        "--metric", help='instead of competition.toml\'s; a name or "module:function"'
    )
    what.add_argument("--scheme", choices=SCHEMES, help="instead of competition.toml's")
    what.add_argument("--folds", type=_count(2), help="instead of competition.toml's (else 5)")
    what.add_argument("--seeds", type=_count(0), nargs="+", default=[0], help="one run for each")

    how = cv.add_argument_group("training")
    how.add_argument("--epochs", type=_count(1), default=recipe.epochs, help="passes over the rows")
    how.add_argument(
        "--lr",
        type=_positive,
        help="peak learning rate (else from the encoder's width)",
    )
    how.add_argument("--batch-size", type=_count(1), default=recipe.batch_size, help="rows")
    how.add_argument(
        "--accumulation-steps",
        type=_count(1),
        default=recipe.accumulation_steps,
        help="batches per optimizer step",
    )
    how.add_argument("--max-length", type=_count(4), help="tokens; longer texts are cut (else 128)")
    how.add_argument(
        "--warmup-ratio",
        type=_ratio(True),
        default=recipe.warmup_ratio,
        help="of the steps",
    )
    how.add_argument(
        "--schedule",
        choices=get_args(Schedule),
        default=recipe.schedule,
        help="after warm-up",
    )
    how.add_argument(
        "--weight-decay",
        type=_ratio(False),
        default=recipe.weight_decay,
        help="of matrices",
    )
    how.add_argument(
        "--max-grad-norm",
        type=_ratio(False),
        default=recipe.max_grad_norm,
        help="0: no clipping",
    )
    how.add_argument("--pooling", choices=get_args(Pooling), default="mean", help="tokens to text")
    how.add_argument("--dropout", type=_ratio(True), default=0.1, help="before the last layer")

    where = cv.add_argument_group("machine and files")
    where.add_argument("--out", type=Path, default=Path("runs"), help="where run folders go")
    where.add_argument("--device", help="cpu, cuda, cuda:1, mps (else cuda where there is one)")
    where.add_argument("--workers", type=_count(1), help="processes (else one per GPU or CPU core)")
    where.add_argument(
        "--precision",
        choices=("auto", "fp32", "bf16", "fp16"),
        default="auto",
        help="auto: bf16 (fp16 on older cards) on CUDA, fp32 elsewhere",
    )
    where.add_argument("--save-models", action="store_true", help="keep each fold's weights")
    where.add_argument("--fresh", action="store_true", help="compute finished cells again")


def _with_settings(arguments: list[str]) -> list[str]:
    """Put the flags of a `--settings` file before those of the command line, which win.

    Raises:
        InputError: if the file is missing, is no TOML, or has a key that is no flag.
    """
    import tomllib

    flags = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    flags.add_argument("--settings", type=Path)
    path = flags.parse_known_args(arguments)[0].settings
    if path is None or arguments[0] != "cv":
        return arguments
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError("no such file", file=path, remedy="check --settings") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"is not valid TOML ({error})", file=path) from None
    cv = argparse.ArgumentParser(add_help=False)
    _add_cv_flags(cv)
    known = [name[2:] for action in cv._actions for name in action.option_strings]
    known.remove("settings")
    found: list[str] = []
    for key, value in content.items():
        name = key.replace("_", "-")
        if name not in known:
            raise InputError(f"unknown key {key!r}{did_you_mean(name, known)}", file=path)
        if isinstance(value, bool):
            found += [f"--{name}"] if value else []
        elif isinstance(value, list) and name == "seeds":
            found += [f"--{name}", *map(str, value)]
        elif isinstance(value, list) and name == "tricks":
            found += [f"--{name}", ", ".join(map(str, value))]
        elif isinstance(value, list | dict):
            raise InputError(
                f"{key!r} takes one value", file=path, remedy=f'write {key} = "..." or a number'
            )
        else:
            found += [f"--{name}", str(value)]
    return ["cv", *found, *arguments[1:]]


# -- commands -----------------------------------------------------------------------------------


def _prepare(options: argparse.Namespace) -> int:
    from competition_kit.data.prepare import prepare

    for name in options.name:
        folder = prepare(name, options.data)
        rows = {stem: _lines(folder / f"{stem}.csv") for stem in ("train", "test")}
        print(f"{folder}: {rows['train']} training rows, {rows['test']} test rows")
    return 0


def _lines(path: Path) -> int:
    from competition_kit.data.tables import read_table

    return len(read_table(path))


def _tricks(options: argparse.Namespace) -> int:
    from competition_kit.tricks.cards import card, catalogue, markdown

    if options.markdown:
        print(markdown(), end="")
    elif options.name:
        print(card(options.name))
    else:
        print(catalogue())
    return 0


def _score(options: argparse.Namespace) -> int:
    from competition_kit.data.competition import load_competition
    from competition_kit.files import read_json, write_json
    from competition_kit.harness.run_folder import RunFolder
    from competition_kit.results.held_out import score_submission
    from competition_kit.results.tables import score_text, text_table

    folder = _finished(options.folder)
    config, metrics = read_json(folder.config), read_json(folder.metrics)
    competition = load_competition(Path(config["competition_folder"]), metric=metrics["metric"])
    held_out = score_submission(competition, folder.submission)
    write_json(RunFolder(options.folder).held_out, vars(held_out))
    rows = [
        [
            "CV mean",
            score_text(metrics["mean"]),
            f"SD {score_text(metrics['sd'])} over folds",
        ],
        [
            "pooled OOF",
            score_text(metrics["oof_of_mean"]),
            f"{config['train_rows']} rows",
        ],
        [
            "held-out",
            score_text(held_out.score),
            f"{held_out.rows} rows, fold ensemble",
        ],
    ]
    print(text_table([held_out.metric, "score", ""], rows))
    return 0


def _finished(path: Path) -> RunFolder:
    from competition_kit.harness.run_folder import RunFolder

    folder = RunFolder(path)
    if not folder.metrics.is_file():
        raise InputError(
            "is no finished run (no metrics.json)",
            file=path,
            remedy="give a folder such as runs/tweets/all-minilm-l6-v2-fgm-1a2b3c4d",
        )
    return folder


def _report(options: argparse.Namespace) -> int:
    from competition_kit.results.report import write_run_report

    print(write_run_report(_finished(options.folder)))
    return 0


def _cv(options: argparse.Namespace) -> int:
    started = time.monotonic()
    strategy = parse_spec(options.adv, STRATEGIES)
    for remark in remarks(strategy):
        log.warning(remark)
    spec = format_spec(strategy, STRATEGIES)
    if strategy.strength == 0 and spec != "none":
        log.warning("%s has strength 0: this is the baseline under another name", spec)
    tricks = parse_tricks(options.tricks)
    _refuse_what_never_acts(strategy, tricks, options.epochs)
    competition = _competition(options)

    from competition_kit.data.folds import audit
    from competition_kit.harness.cross_validation import cross_validate, make_plan
    from competition_kit.harness.engines.local import place
    from competition_kit.progress import Progress
    from competition_kit.results.floor import cached_floor
    from competition_kit.results.metrics import find_metric

    toml = None if options.metric else options.data / "competition.toml"
    metric = find_metric(competition.rules.metric, competition.multi_label, toml)
    source = find_model(options.model)
    seeds = tuple(dict.fromkeys(options.seeds))
    device = _device(options.device)
    recipe = Recipe(
        epochs=options.epochs,
        lr=options.lr or default_lr(source.width),
        batch_size=options.batch_size,
        accumulation_steps=options.accumulation_steps,
        warmup_ratio=options.warmup_ratio,
        schedule=options.schedule,
        weight_decay=options.weight_decay,
        max_grad_norm=options.max_grad_norm,
        precision=_precision(options.precision, device),
    )
    max_length = options.max_length or min(MAX_LENGTH, source.max_length)
    for trick in tricks:
        if isinstance(trick, Pretrain):
            source = _adapted(trick, competition, source, max_length, options.out, device, recipe)
    plan = make_plan(
        competition,
        source,
        strategy=spec,
        tricks=format_tricks(tricks),
        recipe=recipe,
        pooling=options.pooling,
        dropout=options.dropout,
        max_length=max_length,
        seeds=seeds,
        out=options.out,
    )
    for finding in audit(competition, plan.folds):
        log.warning(finding)
    placement = place(len(plan.cells), device, options.workers)
    log.info(_headline(plan, placement.workers, device))

    with plan.folder.locked():
        with Progress(plan.steps, recipe.epochs, metric.name) as progress:
            home = plan.folder.path.parent
            floor = cached_floor(
                home / "floor",
                competition,
                plan.folds,
                progress.floor(plan.folds.count),
            )
            outcome = cross_validate(
                plan,
                placement,
                floor,
                save_models=options.save_models,
                fresh=options.fresh,
                command="python run_cv.py " + shlex.join(sys.argv[1:]),
                on_step=progress.step,
                on_cell=progress.cell,
            )
        written = _write_report(plan)
    _print_outcome(plan, outcome, time.monotonic() - started, placement.workers, written)
    return 0


def _adapted(
    trick: Pretrain,
    competition: Competition,
    source: ModelSource,
    max_length: int,
    out: Path,
    device: str,
    recipe: Recipe,
) -> ModelSource:
    """Return the encoder after pretraining on the competition's texts, made now or found."""
    from competition_kit.harness.cross_validation import tokens_of
    from competition_kit.harness.pretraining import adapted_encoder
    from competition_kit.progress import bar_of_unknown_length

    home = out / competition.name
    tokens = tokens_of(competition, source, max_length, home)
    log.info(
        "pretrain: the texts of %d training and %d test rows are used, without labels",
        len(competition.train),
        len(competition.test),
    )
    with bar_of_unknown_length("pretraining") as on_step:
        return adapted_encoder(
            source,
            tokens,
            trick,
            home,
            device=device,
            precision=recipe.precision,
            on_step=on_step,
        )


def _refuse_what_never_acts(strategy: Strategy, tricks: tuple[Trick, ...], epochs: int) -> None:
    """Refuse what would begin only after the last epoch: it would be on and do nothing."""
    for layer in layers(strategy):
        start = getattr(layer, "start_epoch", 0.0)
        if start >= epochs:
            name = next(key for key, cls in STRATEGIES.items() if cls is type(layer))
            raise InputError(
                f"{name} starts after epoch {start:g}, and --epochs is {epochs}",
                remedy=f"use {name}(start_epoch=0), or more --epochs",
            )
    for trick in tricks:
        if isinstance(trick, CheckpointAverage) and trick.epochs > epochs:
            raise InputError(
                f"checkpoint_average over {trick.epochs} epochs, and --epochs is {epochs}",
                remedy=f"use checkpoint_average(epochs={epochs}) or less, or more --epochs",
            )


def _competition(options: argparse.Namespace) -> Competition:
    """Load the competition; the default one is made first if it is not there."""
    if (
        options.data == DATA / DEFAULT_COMPETITION
        and not (options.data / "competition.toml").is_file()
    ):
        from competition_kit.data.prepare import prepare

        log.info("preparing %s (once)", options.data)
        prepare(DEFAULT_COMPETITION, DATA)
    from competition_kit.data.competition import load_competition

    competition = load_competition(
        options.data, metric=options.metric, scheme=options.scheme, folds=options.folds
    )
    for line in competition.inferred:
        log.info("inferred: %s", line)
    return competition


def _device(wanted: str | None) -> str:
    """Return the device to use; refuse one that is not there."""
    import torch

    if wanted is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=wanted)
    except (RuntimeError, AssertionError) as error:
        raise InputError(
            f"--device {wanted} cannot be used ({str(error).splitlines()[0]})",
            remedy="use --device cpu, or leave it out",
        ) from error
    return wanted


def _precision(wanted: str, device: str) -> Precision:
    """Return the precision to train in; "auto" takes the fastest that is safe on this device."""
    if wanted != "auto":
        return wanted  # type: ignore[return-value]
    if not device.startswith("cuda"):
        return "fp32"
    import torch

    # cards before Ampere emulate bf16, at a loss
    native = torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16" if native else "fp16"


def _headline(plan: Plan, workers: int, device: str) -> str:
    competition, cells = plan.competition, len(plan.cells)
    return (
        f"{competition.rules.title}: {len(competition.train)} training rows, "
        f"{len(competition.classes)} classes; {_said(plan)}; {plan.source.short_name}, "
        f"lr {plan.arm.training['lr']:g}; {cells} cells on {workers} x {device}"
    )


def _said(plan: Plan) -> str:
    """Return strategy and tricks without what is at its default, for people."""
    strategy = parse_spec(plan.arm.strategy, STRATEGIES)
    parts = [format_spec(strategy, STRATEGIES, defaults=False)]
    parts += [format_spec(trick, TRICKS, defaults=False) for trick in parse_tricks(plan.arm.tricks)]
    return ", ".join(parts)


def _write_report(plan: Plan) -> Path | None:
    """Write the HTML report; training works without the packages that it needs."""
    from competition_kit.results.report import write_run_report

    try:
        return write_run_report(plan.folder)
    except ModuleNotFoundError as error:
        log.warning("no report.html: %s is missing; pip install %s", error.name, error.name)
        return None


def _print_outcome(
    plan: Plan, outcome: CVResult, seconds: float, workers: int, report: Path | None
) -> None:
    from competition_kit.harness.cross_validation import mean_and_sd
    from competition_kit.results.tables import duration, score_text, text_table

    several = len(plan.seeds) > 1
    columns = [[score_text(score) for score in layer] for layer in outcome.fold_scores]
    columns = [
        [*column, "", *map(score_text, [*mean_and_sd(layer), pooled])]
        for column, layer, pooled in zip(
            columns, outcome.fold_scores, outcome.oof_scores, strict=True
        )
    ]
    header = ["fold", *(f"seed {seed}" for seed in plan.seeds)] if several else ["fold", "encoder"]
    if several:
        header.append("mean")
        means = [score_text(score) for score in outcome.fold_scores.mean(axis=0)]
        overall = [outcome.mean, outcome.sd, outcome.oof_of_mean]
        columns.append([*means, "", *map(score_text, overall)])
    header.append("TF-IDF floor")
    floor_mean, floor_sd = mean_and_sd(outcome.floor_scores)
    columns.append(
        [
            *map(score_text, outcome.floor_scores),
            "",
            *map(score_text, [floor_mean, floor_sd, outcome.floor_oof]),
        ]
    )
    names = [*plan.folds.names, "", "mean", "SD", "pooled OOF"]
    rows = [
        [] if not name else [name, *(column[i] for column in columns)]
        for i, name in enumerate(names)
    ]
    passes = outcome.cells[plan.cells[0]].passes
    fit = sum(result.fit_seconds for result in outcome.cells.values())
    counted = ", ".join(
        f"{count:g} {name.replace('_', '-').removesuffix('s' if count == 1 else '')}"
        for name, count in passes.items()
        if count
    )
    direction = "" if outcome.metric.greater_is_better else ", lower is better"
    print(f"\n{plan.competition.name}: {outcome.metric.name}{direction}, {_said(plan)}")
    print(text_table(header, rows))
    if several:
        print("  pooled OOF of 'mean': of the probabilities averaged over seeds")
    print(
        f"\ntime {duration(seconds)}; training {duration(fit)} in {len(outcome.cells)} cells "
        f"on {workers} worker{'s' * (workers > 1)} ({len(outcome.computed)} computed now); "
        f"per batch: {counted}"
    )
    folder = plan.folder
    paths = [
        folder.oof,
        folder.test_predictions,
        folder.submission,
        folder.metrics,
        report,
    ]
    print("written:")
    for path in paths:
        if path is not None and path.is_file():
            print(f"  {path}")
    pairs = ((outcome.mean, floor_mean), (outcome.oof_of_mean, outcome.floor_oof))
    for score, floor in pairs:
        if not outcome.metric.better(score, floor):
            log.warning(
                "THE ENCODER IS NOT BETTER THAN THE FLOOR (%s against %s): a linear model on word "
                "counts does as well; try more --epochs, another --lr, or another --model",
                score_text(score),
                score_text(floor),
            )
            break
