"""The whole way: a folder of CSVs in, scores and a submission out."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from html.parser import HTMLParser
from importlib import metadata
from pathlib import Path
from typing import Any

import markupsafe
import numpy as np
import pandas as pd
import pytest
from conftest import RUN_FILES
from scipy.special import expit, softmax
from sklearn.metrics import accuracy_score, f1_score

from competition_kit.cli import main
from competition_kit.specs import parse_spec
from competition_kit.strategies import STRATEGIES
from competition_kit.strategies.fgm import FGM

ROOT = Path(__file__).parents[1]
QUICK = ["--epochs", "1", "--workers", "1", "--lr", "1e-3", "--device", "cpu"]
pytestmark = pytest.mark.usefixtures("one_core")


def read(path: Path) -> pd.DataFrame:
    """Read a CSV as it stands: no value is a number or missing."""
    return pd.read_csv(path, dtype=str, keep_default_na=False)


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


@dataclass
class Run:
    """A finished run, the competition it was made from, and what was printed."""

    competition: Path
    folder: Path
    printed: str = ""

    @property
    def train(self) -> pd.DataFrame:
        return read(self.competition / "train.csv")

    @property
    def oof(self) -> pd.DataFrame:
        return read(self.folder / "oof.csv")

    @property
    def config(self) -> Any:
        return read_json(self.folder / "config.json")

    @property
    def metrics(self) -> Any:
        return read_json(self.folder / "metrics.json")

    def cells(self) -> dict[tuple[int, int], Any]:
        """Return (seed, fold) -> arrays of its predictions.npz."""
        found = {}
        for path in self.folder.glob("cells/*/predictions.npz"):
            match = re.fullmatch(r"seed(\d+)-fold(\d+)", path.parent.name)
            assert match is not None
            found[int(match[1]), int(match[2])] = np.load(path)
        return found

    def probabilities(self, frame: pd.DataFrame) -> np.ndarray:
        """Return the p_ columns in the order of the classes."""
        return frame[[f"p_{name}" for name in self.config["classes"]]].to_numpy(dtype=float)


def cross_validate(
    competition: Path, model: Path, out: Path, *more: str, folds: int | None = 3
) -> Run:
    arguments = ["--data", str(competition), "--model", str(model), "--out", str(out)]
    if folds is not None:
        arguments += ["--folds", str(folds)]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert main([*arguments, *QUICK, *more]) == 0
    (config,) = (out / competition.name).glob("*/config.json")
    return Run(competition, config.parent, printed.getvalue())


# -- one run, every file of it ----------------------------------------------------------------

TITLE = "<script>alert('title')</script> & \"quotes\" <img src=x onerror=alert(1)>"
CLASSES = ("<script>alert(1)</script>", '好 & "bad" $x$', "so-so 😀")
WORDS = ("good great happy", "bad awful sad", "table chair 好 😀")


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory, model_folder: Callable[[str], Path], one_core: None
) -> Run:
    """A run with two seeds on a competition whose names want to be trouble."""
    place = tmp_path_factory.mktemp("finished")
    folder = place / "toy"
    folder.mkdir()
    generator = np.random.default_rng(0)

    def frame(part: str, rows: int) -> pd.DataFrame:
        label = generator.integers(0, 3, size=rows)
        texts = [
            f"{WORDS[i]} {' '.join(generator.choice(WORDS, size=generator.integers(1, 4)))}"
            for i in label
        ]
        ids = [f'{part}-行-{number}-😀, "{"<b>" if number % 2 else "&"}"' for number in range(rows)]
        return pd.DataFrame({"id": ids, "text": texts, "label": np.array(CLASSES)[label]})

    train, test = frame("train", 45), frame("test", 9)
    train.to_csv(folder / "train.csv", index=False)
    test.drop(columns="label").to_csv(folder / "test.csv", index=False)
    sample = test[["label", "id"]].sample(frac=1, random_state=0)  # the label column comes first
    sample.assign(label=CLASSES[2]).to_csv(folder / "sample_submission.csv", index=False)
    toml = f'title = {json.dumps(TITLE)}\nid = "id"\n'
    (folder / "competition.toml").write_text(toml, encoding="utf-8")
    return cross_validate(
        folder, model_folder("bert"), place / "runs", "--adv", "fgm", "--seeds", "0", "7"
    )


def test_a_run_leaves_exactly_the_files_that_are_promised(finished: Run) -> None:
    found = {path.name for path in finished.folder.iterdir() if not path.name.startswith(".")}
    assert found == {*RUN_FILES, "cells"}
    cells = {path.name for path in (finished.folder / "cells").iterdir()}
    assert cells == {f"seed{seed}-fold{fold}" for seed in (0, 7) for fold in range(3)}
    for cell in (finished.folder / "cells").iterdir():
        assert {x.name for x in cell.iterdir()} == {"predictions.npz", "metrics.json", "log.jsonl"}
    assert not list(finished.folder.rglob("*.tmp")), "no temporary file is left"
    # readable name, and 8 digits of the settings' hash
    assert finished.folder.name == f"tiny-bert-fgm-{finished.config['arm_hash'][:8]}"


def test_oof_holds_each_row_once_for_each_seed_in_its_fold(finished: Run) -> None:
    train, oof = finished.train, finished.oof
    folds = read(finished.folder / "folds.csv")
    assert folds.columns.tolist() == ["id", "fold"]
    assert folds["id"].tolist() == train["id"].tolist()
    assert oof.columns.tolist() == ["id", "fold", "seed", "label", *(f"p_{c}" for c in CLASSES_BY)]
    for seed in ("0", "7"):
        rows = oof[oof["seed"] == seed]
        assert rows["id"].tolist() == train["id"].tolist()
        assert rows["label"].tolist() == train["label"].tolist()
        assert rows["fold"].tolist() == folds["fold"].tolist()
    assert len(oof) == 2 * len(train)


CLASSES_BY = sorted(CLASSES)  # the kit's order: words sorted, as there are no numbers


def test_oof_probabilities_are_those_of_the_model_that_did_not_see_the_row(finished: Run) -> None:
    oof = finished.oof
    for (seed, fold), arrays in finished.cells().items():
        layer = oof[oof["seed"] == str(seed)].reset_index(drop=True)
        assert arrays["valid_rows"].tolist() == layer.index[layer["fold"] == str(fold)].tolist()
        np.testing.assert_allclose(
            finished.probabilities(layer)[arrays["valid_rows"]],
            softmax(arrays["valid_logits"].astype(float), axis=1),
            rtol=1e-12,
        )


def test_test_predictions_are_the_mean_of_the_cells_softmaxes(finished: Run) -> None:
    table = read(finished.folder / "test_predictions.csv")
    assert table["id"].tolist() == read(finished.competition / "test.csv")["id"].tolist()

    cells = finished.cells().values()

    assert len(cells) == 6
    expected = np.mean([softmax(x["test_logits"].astype(float), axis=1) for x in cells], axis=0)
    np.testing.assert_allclose(finished.probabilities(table), expected, rtol=1e-12)


def test_the_submission_has_the_samples_columns_ids_and_order(finished: Run) -> None:
    sample = read(finished.competition / "sample_submission.csv")
    test = read(finished.folder / "test_predictions.csv")
    submission = read(finished.folder / "submission.csv")

    assert submission.columns.tolist() == sample.columns.tolist() == ["label", "id"]
    assert submission["id"].tolist() == sample["id"].tolist() != test["id"].tolist()
    likeliest = np.array(finished.config["classes"])[finished.probabilities(test).argmax(axis=1)]
    expected = dict(zip(test["id"], likeliest, strict=True))
    assert submission["label"].tolist() == [expected[row_id] for row_id in submission["id"]]


def test_scores_are_what_scikit_learn_says_of_the_oof_rows(finished: Run) -> None:
    oof, metrics = finished.oof, finished.metrics

    def score(rows: pd.DataFrame, probabilities: np.ndarray) -> float:
        guess = np.array(finished.config["classes"])[probabilities.argmax(axis=1)]
        return f1_score(rows["label"], guess, average="macro", zero_division=0)

    layers = {seed: oof[oof["seed"] == seed] for seed in ("0", "7")}
    by_cell = {
        (seed, fold): score(rows, finished.probabilities(rows))
        for seed, layer in layers.items()
        for fold, rows in layer.groupby("fold")
    }
    assert {(str(c["seed"]), c["fold"]): c["score"] for c in metrics["cells"]} == pytest.approx(
        by_cell
    )
    assert metrics["metric"] == "macro_f1" and metrics["greater_is_better"] is True
    assert metrics["mean"] == pytest.approx(np.mean(list(by_cell.values())))
    by_fold = [np.mean([by_cell["0", fold], by_cell["7", fold]]) for fold in ("0", "1", "2")]
    assert metrics["sd"] == pytest.approx(np.std(by_fold, ddof=1))
    pooled = [score(rows, finished.probabilities(rows)) for rows in layers.values()]
    assert metrics["oof"] == pytest.approx(pooled)
    mean = np.mean([finished.probabilities(rows) for rows in layers.values()], axis=0)
    assert metrics["oof_of_mean"] == pytest.approx(score(layers["0"], mean))
    assert metrics["passes"] == {"forwards": 2.0, "backwards": 2.0, "input_backwards": 0.0}
    assert len(metrics["floor"]["folds"]) == 3 and 0 < metrics["floor"]["oof"] <= 1


def test_the_table_in_the_terminal_shows_these_scores(finished: Run) -> None:
    metrics = finished.metrics
    lines = [line.split() for line in finished.printed.splitlines() if "." in line]
    rows = {words[0]: words[1:] for words in lines[:7] if words[0] != "toy:"}
    by_cell = {(c["seed"], c["fold"]): c["score"] for c in metrics["cells"]}
    for number, fold in enumerate(("0", "1", "2")):
        scores = [by_cell[0, fold], by_cell[7, fold]]
        shown = [*scores, np.mean(scores), metrics["floor"]["folds"][number]]
        assert rows[fold] == [f"{score:.4f}" for score in shown]
    assert rows["mean"][2:] == [f"{metrics['mean']:.4f}", f"{metrics['floor']['mean']:.4f}"]
    assert rows["SD"][2] == f"{metrics['sd']:.4f}"
    pooled = [*metrics["oof"], metrics["oof_of_mean"], metrics["floor"]["oof"]]
    assert rows["pooled"] == ["OOF", *(f"{score:.4f}" for score in pooled)]
    for name in RUN_FILES - {"config.json", "folds.csv"}:
        assert f"  {finished.folder / name}" in finished.printed.splitlines()


def test_config_says_what_the_numbers_depend_on(finished: Run) -> None:
    config = finished.config
    arm = config["arm"]
    assert parse_spec(arm["strategy"], STRATEGIES) == FGM()
    assert (arm["pooling"], arm["dropout"]) == ("mean", 0.1)
    training = {"epochs": 1, "lr": 1e-3, "batch_size": 16, "schedule": "linear"}
    assert training.items() <= arm["training"].items()
    assert config["seeds"] == [0, 7] and config["classes"] == CLASSES_BY
    assert (config["train_rows"], config["test_rows"]) == (45, 9)
    for name in ("data_hash", "fold_hash", "model_hash"):
        assert re.fullmatch(r"[0-9a-f]{64}", arm[name]), name
    assert re.fullmatch(r"[0-9a-f]{64}", config["arm_hash"])
    versions = {"python", "torch", "transformers", "scikit-learn", "numpy", "pandas"}
    assert versions <= config["versions"].keys()
    assert config["versions"]["torch"] == metadata.version("torch")
    assert config["placement"]["workers"] == 1 and config["placement"]["devices"] == ["cpu"]
    assert config["command"].startswith("python run_cv.py")
    assert Path(config["competition_folder"]) == finished.competition.resolve()
    assert config["rules"]["title"] == TITLE
    assert config["git_commit"] is None or re.match(r"[0-9a-f]{40}", config["git_commit"])


def test_chinese_and_emoji_are_written_as_they_were_read(finished: Run) -> None:
    for name in ("oof.csv", "submission.csv", "test_predictions.csv", "folds.csv"):
        text = (finished.folder / name).read_bytes().decode("utf-8")
        assert "-行-" in text and "😀" in text, name
        assert not text.startswith("\ufeff") and "\r" not in text, name
    assert "好" in (finished.folder / "config.json").read_text(encoding="utf-8")
    tokens = sorted(finished.folder.parent.glob("tokens/*"))
    assert len(tokens) == 1, "tokenised once for all cells"


def test_the_report_shows_other_peoples_names_as_text(finished: Run) -> None:
    page = (finished.folder / "report.html").read_text(encoding="utf-8")
    assert "<script" not in page.lower() and "<img" not in page.lower()
    assert "&lt;script&gt;alert(&#39;title&#39;)&lt;/script&gt; &amp; &#34;quotes&#34;" in page
    assert "<td>&lt;script&gt;alert(1)&lt;/script&gt;</td>" in page
    assert "<td>好 &amp; &#34;bad&#34; $x$</td>" in page
    assert "so-so 😀" in page
    # in the picture too
    assert re.search(r"<text[^>]*>&lt;script&gt;alert\(1\)&lt;/scrip", page)
    assert re.search(r'<text[^>]*>好 &amp; "bad" \$x\$</text>', page)


class Tags(HTMLParser):
    """Collects what a browser would see: tags, attributes, and the text of style sheets."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.styles = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        if self.names and self.names[-1] == "style":
            self.styles += data


def test_the_report_needs_nothing_from_anywhere(finished: Run) -> None:
    page = (finished.folder / "report.html").read_text(encoding="utf-8")
    seen = Tags()
    seen.feed(page)
    seen.close()
    assert seen.names.count("svg") == 3 and seen.names.count("table") == 3
    assert not {"script", "link", "iframe", "object", "embed", "base", "img"} & set(seen.names)
    for name, value in seen.attributes:
        assert not name.startswith("on"), name
        if not name.startswith("xmlns"):
            assert "://" not in value, (name, value)
        if name in ("src", "href", "xlink:href", "srcset", "data", "action"):
            assert value.startswith(("#", "data:image/png;")), (name, value)
        assert not re.search(r"url\((?!#)", value), (name, value)
    assert ":root" in seen.styles and "@import" not in seen.styles and "url(" not in seen.styles
    assert re.sub(r'xmlns(:\w+)?="https?://[^"]*"', "", page).count("://") == 0
    assert page.rstrip().endswith("</html>")


def test_the_report_shows_the_scores(finished: Run) -> None:
    page = (finished.folder / "report.html").read_text(encoding="utf-8")
    metrics = finished.metrics
    for score in (metrics["mean"], metrics["sd"], metrics["oof_of_mean"], metrics["floor"]["mean"]):
        assert f"{score:.4f}" in page
    for name in CLASSES:
        count = int((finished.train["label"] == name).sum())
        shown = str(markupsafe.escape(name))
        row = re.search(rf"<td>{re.escape(shown)}</td><td>(\d+)</td>", page)
        assert row is not None and int(row[1]) == count, "rows count once, however many seeds"


def test_a_report_is_of_the_seeds_that_have_results(finished: Run, tmp_path: Path) -> None:
    """A later command was stopped, and an ablation keeps its A/A cells in the folder, too."""
    run = Run(finished.competition, shutil.copytree(finished.folder, tmp_path / "copy"))
    (run.folder / "config.json").write_text(
        json.dumps(run.config | {"seeds": [0, 7, 8]}), encoding="utf-8"
    )
    cells = run.folder / "cells"
    for seed in (8, 1000):
        shutil.copytree(cells / "seed0-fold0", cells / f"seed{seed}-fold0")

    assert main(["report", str(run.folder)]) == 0

    assert (run.folder / "report.html").read_bytes() == finished.folder.joinpath(
        "report.html"
    ).read_bytes()


@pytest.mark.parametrize("garbage", [b"\xff\x00no,table", b"", b"id,label\nx,unknown\n"])
def test_cv_never_reads_the_solution(
    tmp_path: Path,
    competition_folder: Callable[..., Path],
    model_folder: Callable[[str], Path],
    garbage: bytes,
) -> None:
    folder, model = competition_folder(), model_folder("bert")
    assert read(folder / "solution.csv")["label"].nunique() > 1
    with_labels = cross_validate(folder, model, tmp_path / "labels")
    (folder / "solution.csv").write_bytes(garbage)

    without = cross_validate(folder, model, tmp_path / "garbage")

    files = {path.name for path in without.folder.iterdir() if not path.name.startswith(".")}
    assert files == {*RUN_FILES, "cells"}
    for name in ("folds.csv", "oof.csv", "test_predictions.csv", "submission.csv"):
        assert (without.folder / name).read_bytes() == (with_labels.folder / name).read_bytes()
    assert without.folder.name == with_labels.folder.name, "it is no part of the settings' hash"
    for key in ("mean", "sd", "oof", "oof_of_mean", "floor"):
        assert without.metrics[key] == with_labels.metrics[key]


# -- other kinds of competition ---------------------------------------------------------------


def test_a_folder_becomes_a_submission_that_can_be_scored(
    tmp_path: Path,
    competition_folder: Callable[..., Path],
    model_folder: Callable[[str], Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = cross_validate(competition_folder(), model_folder("roberta"), tmp_path / "runs")
    capsys.readouterr()

    assert main(["score", str(run.folder)]) == 0

    solution = read(run.competition / "solution.csv").set_index("id")["label"]
    submission = read(run.folder / "submission.csv").set_index("id")["label"]
    expected = f1_score(
        solution, submission[solution.index], average="macro", labels=run.config["classes"]
    )
    assert read_json(run.folder / "held_out.json")["score"] == pytest.approx(expected)
    held_out = [x for x in capsys.readouterr().out.splitlines() if "held-out" in x]
    assert len(held_out) == 1 and f"{expected:.4f}" in held_out[0]

    assert main(["report", str(run.folder)]) == 0
    assert f"Held-out: {expected:.4f}" in (run.folder / "report.html").read_text(encoding="utf-8")


def assert_multi_label(run: Run, targets: np.ndarray) -> None:
    """Check files against each label's own sigmoid; targets [N, C] in the order of the classes."""
    classes = np.array(run.config["classes"])
    oof = run.oof
    assert oof["id"].tolist() == run.train["id"].tolist()
    assert oof["label"].tolist() == ["|".join(classes[row.astype(bool)]) for row in targets]
    probabilities = run.probabilities(oof)
    for (_, fold), arrays in run.cells().items():
        rows = arrays["valid_rows"]
        assert (oof["fold"][rows] == str(fold)).all()
        np.testing.assert_allclose(
            probabilities[rows], expit(arrays["valid_logits"].astype(float)), rtol=1e-12
        )
    expected = f1_score(targets, probabilities >= 0.5, average="macro", zero_division=0)
    assert run.metrics["oof_of_mean"] == pytest.approx(expected)
    test = run.probabilities(read(run.folder / "test_predictions.csv"))
    cells = [expit(arrays["test_logits"].astype(float)) for arrays in run.cells().values()]
    np.testing.assert_allclose(test, np.mean(cells, axis=0), rtol=1e-12)


def test_several_labels_in_columns_of_their_own(
    tmp_path: Path, competition_folder: Callable[..., Path], model_folder: Callable[[str], Path]
) -> None:
    folder = competition_folder(task="multi_label")

    run = cross_validate(folder, model_folder("bert"), tmp_path / "runs", "--adv", "pgd")

    assert run.config["rules"]["cv"]["scheme"] == "multilabel"
    assert run.config["classes"] == ["is_good", "is_bad"]
    assert_multi_label(run, run.train[["is_good", "is_bad"]].to_numpy(dtype=int))
    test = read(run.folder / "test_predictions.csv").set_index("id")
    submission = read(run.folder / "submission.csv")
    sample = read(folder / "sample_submission.csv")
    assert submission.columns.tolist() == sample.columns.tolist()
    assert submission["id"].tolist() == sample["id"].tolist()
    for name in ("is_good", "is_bad"):
        chosen = (test[f"p_{name}"].astype(float) >= 0.5).astype(int).astype(str)
        assert submission[name].tolist() == chosen[submission["id"]].tolist()


def test_several_labels_in_one_column_with_a_separator(
    tmp_path: Path, competition_folder: Callable[..., Path], model_folder: Callable[[str], Path]
) -> None:
    folder = competition_folder(task="multi_label")
    names = ("好", "bad <b>")
    for file in ("train", "sample_submission"):
        frame = read(folder / f"{file}.csv")
        flags = frame[["is_good", "is_bad"]].to_numpy(dtype=int).astype(bool)
        frame["tags"] = [";".join(np.array(names)[row]) or "none" for row in flags]
        frame.drop(columns=["is_good", "is_bad"]).to_csv(folder / f"{file}.csv", index=False)
    (folder / "competition.toml").write_text(
        'label = "tags"\nlabel_separator = ";"\nempty_label = "none"\n', encoding="utf-8"
    )

    run = cross_validate(folder, model_folder("roberta"), tmp_path / "runs", "--adv", "freelb")

    assert sorted(run.config["classes"]) == sorted(names)
    tags = [set(cell.split(";")) for cell in run.train["tags"]]
    assert {frozenset(cell) for cell in tags} >= {frozenset({"none"}), frozenset(names)}
    assert_multi_label(
        run, np.array([[name in cell for name in run.config["classes"]] for cell in tags], int)
    )
    test = read(run.folder / "test_predictions.csv").set_index("id")
    for row_id, handed_in in read(run.folder / "submission.csv")[["id", "tags"]].to_numpy():
        chosen = {name for name in names if float(test.loc[row_id, f"p_{name}"]) >= 0.5}
        assert set(handed_in.split(";")) == (chosen or {"none"})


def test_pairs_of_sentences_and_weights_that_predict_the_same_again(
    tmp_path: Path, competition_folder: Callable[..., Path], model_folder: Callable[[str], Path]
) -> None:
    from competition_kit.data.encoding import Encoded
    from competition_kit.training.fit import predict
    from competition_kit.training.model import build_classifier, load_tokenizer

    folder, tiny = competition_folder(pair=True), model_folder("bert")
    run = cross_validate(folder, tiny, tmp_path / "runs", "--adv", "neftune", "--save-models")

    assert run.config["rules"]["text"] == ["text", "text_b"]
    (path,) = run.folder.parent.glob("tokens/*.safetensors")
    encoded = Encoded.load(path)
    tokenizer = load_tokenizer(tiny)
    both = pd.concat([run.train, read(folder / "test.csv")], ignore_index=True)
    assert len(encoded) == len(both)
    for row in (0, len(both) - 1):
        tokens = encoded.ids[encoded.starts[row] : encoded.starts[row + 1]].tolist()
        one, two = both.loc[row, ["text", "text_b"]]
        expected = f"[CLS] {one} [SEP] {two} [SEP]".split()
        assert tokenizer.convert_ids_to_tokens(tokens) == expected
    assert encoded.type_ids is not None and set(encoded.type_ids.tolist()) == {0, 1}

    for (seed, fold), arrays in run.cells().items():
        model = build_classifier(tiny, len(run.config["classes"]))
        model.restore(run.folder / "cells" / f"seed{seed}-fold{fold}" / "model.safetensors")
        again = predict(model, encoded, np.arange(len(run.train), len(both)))
        np.testing.assert_allclose(again, arrays["test_logits"], rtol=0, atol=1e-5)


def test_group_folds_keep_groups_together(
    tmp_path: Path, competition_folder: Callable[..., Path], model_folder: Callable[[str], Path]
) -> None:
    run = cross_validate(competition_folder(groups=True), model_folder("bert"), tmp_path / "runs")

    assert run.config["rules"]["cv"]["scheme"] == "group"
    joined = run.oof.merge(run.train[["id", "doc"]], on="id")
    assert len(joined) == 60
    assert (joined.groupby("doc")["fold"].nunique() == 1).all()
    assert sorted(joined["fold"].unique()) == ["0", "1", "2"]


def test_predefined_folds_keep_their_names_and_members(
    tmp_path: Path, competition_folder: Callable[..., Path], model_folder: Callable[[str], Path]
) -> None:
    folder = competition_folder()
    train = read(folder / "train.csv")
    train["part"] = [("北", "south", "10", "9")[i % 7 % 4] for i in range(len(train))]
    train.to_csv(folder / "train.csv", index=False)
    (folder / "competition.toml").write_text(
        'text = "text"\n[cv]\nscheme = "predefined"\nfold = "part"\n', encoding="utf-8"
    )

    run = cross_validate(folder, model_folder("bert"), tmp_path / "runs", folds=None)

    assert run.oof["fold"].tolist() == train["part"].tolist()
    assert read(run.folder / "folds.csv")["fold"].tolist() == train["part"].tolist()
    scores = {cell["fold"]: cell["score"] for cell in run.metrics["cells"]}
    classes = np.array(run.config["classes"])
    for name, rows in run.oof.groupby("fold"):
        guess = classes[run.probabilities(rows).argmax(axis=1)]
        assert scores.pop(name) == pytest.approx(f1_score(rows["label"], guess, average="macro"))
    assert not scores
    # the same command reads the folds back from its own file
    again = cross_validate(folder, model_folder("bert"), tmp_path / "runs", folds=None)
    assert "(0 computed now)" in again.printed


def test_a_competition_without_test_rows_has_scores_and_no_submission(
    tmp_path: Path, competition_folder: Callable[..., Path], model_folder: Callable[[str], Path]
) -> None:
    folder = competition_folder()
    for name in ("test.csv", "sample_submission.csv"):
        (folder / name).unlink()

    run = cross_validate(
        folder, model_folder("bert"), tmp_path / "runs", "--metric", "accuracy", "--scheme", "kfold"
    )

    found = {path.name for path in run.folder.iterdir() if not path.name.startswith(".")}
    assert found == {*RUN_FILES, "cells"} - {"test_predictions.csv", "submission.csv"}
    guess = np.array(run.config["classes"])[run.probabilities(run.oof).argmax(axis=1)]
    assert run.metrics["oof_of_mean"] == pytest.approx(accuracy_score(run.oof["label"], guess))
    assert "submission.csv" not in run.printed


# -- as a user starts it ----------------------------------------------------------------------


def python(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, capture_output=True, text=True, timeout=120
    )


def readme_commands() -> list[str]:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    fenced, commands = False, []
    for line in lines:
        if line.strip().startswith("```"):
            fenced = not fenced
        elif fenced or line.startswith("    "):
            commands.append(line.strip())
    return commands


def test_the_readme_starts_with_its_two_commands_to_the_letter() -> None:
    commands = readme_commands()
    first, second = (
        commands.index("pip install -r requirements.txt && python run_cv.py --adv fgm"),
        commands.index("pip install -r tests/requirements.txt && python -m pytest"),
    )
    assert first < second
    first_line = (ROOT / "tests" / "requirements.txt").read_text(encoding="utf-8").splitlines()[0]
    assert first_line == "-r ../requirements.txt"


def test_the_readmes_command_runs_with_a_smaller_budget(
    tmp_path: Path, competition_folder: Callable[..., Path], model_folder: Callable[[str], Path]
) -> None:
    command = next(
        line for line in readme_commands() if line.endswith("python run_cv.py --adv fgm")
    )
    program, *arguments = shlex.split(command.partition("&&")[2])
    assert program == "python"
    budget = {
        "--data": competition_folder(),
        "--model": model_folder("bert"),
        "--out": tmp_path / "runs",
        "--epochs": 1,
        "--folds": 2,
        "--workers": 2,
        "--device": "cpu",
    }

    done = python(*arguments, *(str(part) for pair in budget.items() for part in pair))

    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr and "Warning" not in done.stderr
    assert "on 2 workers (2 computed now)" in done.stdout
    (run,) = (tmp_path / "runs" / "toy").glob("tiny-bert-fgm-*")
    assert {path.name for path in run.iterdir() if not path.name.startswith(".")} == {
        *RUN_FILES,
        "cells",
    }
    config = read_json(run / "config.json")
    assert config["command"].startswith("python run_cv.py --adv fgm --data ")


HELP = """
import runpy, sys
sys.argv = ["run_cv.py", *{arguments}]
try:
    runpy.run_path("run_cv.py", run_name="__main__")
except SystemExit as stop:
    assert stop.code == {code}, stop.code
slow = "torch", "pandas", "transformers", "numpy", "sklearn", "scipy", "matplotlib"
loaded = [name for name in slow if name in sys.modules]
assert not loaded, loaded
"""


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(["--help"], 0), (["cv", "--help"], 0), (["tricks", "fgm"], 0), (["--adv", "fgn"], 2)],
)
def test_help_and_typos_answer_without_anything_slow(arguments: list[str], code: int) -> None:
    done = python("-c", HELP.format(arguments=arguments, code=code))

    assert done.returncode == 0, done.stderr
    assert done.stdout or "did you mean 'fgm'?" in done.stderr


# What a bare GPU machine has: torch, transformers, scikit-learn, pandas, tqdm and what these bring.
# Nothing else is found here, Jinja2 neither, though torch brings it.
BARE = """
import importlib.metadata, importlib.util, re, sys
from importlib.machinery import PathFinder
from packaging.requirements import Requirement

def plain(name):
    return re.sub(r"[-_.]+", "-", name).lower()

allowed, waiting = set(), ["torch", "transformers", "scikit-learn", "pandas", "tqdm"]
waiting += ["numpy", "safetensors"]
while waiting:
    name = plain(waiting.pop())
    if name in allowed:
        continue
    allowed.add(name)
    try:
        needs = importlib.metadata.requires(name) or []
    except importlib.metadata.PackageNotFoundError:
        continue
    for need in map(Requirement, needs):
        if need.marker is None or need.marker.evaluate({"extra": ""}):
            waiting.append(need.name)
owners = importlib.metadata.packages_distributions()
foreign = {name for name in owners if not allowed & {plain(owner) for owner in owners[name]}}
foreign = foreign - {"competition_kit"} | {"jinja2"}

class Bare(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in foreign else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Bare
for name in ("statsmodels", "baycomp", "matplotlib", "jinja2", "iterstrat", "accelerate"):
    assert importlib.util.find_spec(name) is None, name
from competition_kit.cli import main
code = main(sys.argv[1:])
assert "competition_kit.harness.train_cell" in sys.modules, "it was trained in this process"
sys.exit(code)
"""


def test_training_needs_no_package_besides_the_few_that_were_promised(
    tmp_path: Path, competition_folder: Callable[..., Path], model_folder: Callable[[str], Path]
) -> None:
    """Without Jinja2, matplotlib and iterative-stratification there is all but the report."""
    arguments = ["--data", str(competition_folder()), "--model", str(model_folder("bert"))]
    arguments += ["--folds", "3"]

    done = subprocess.run(
        [sys.executable, "-c", BARE, *arguments, "--out", str(tmp_path / "runs"), *QUICK],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )

    assert done.returncode == 0, done.stderr
    warnings = [x for x in done.stderr.splitlines() if "warning: no report.html" in x]
    assert len(warnings) == 1 and "jinja2 is missing; pip install jinja2" in warnings[0]
    (run,) = (tmp_path / "runs" / "toy").glob("tiny-bert-none-*")
    found = {path.name for path in run.iterdir() if not path.name.startswith(".")}
    assert found == {*RUN_FILES, "cells"} - {"report.html"}
    assert "report.html" not in done.stdout


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--adv", "neftune+awp+fgm"], "awp starts after epoch 1, and --epochs is 1"),
        (["--adv", "sam(start_epoch=2)"], "sam starts after epoch 2, and --epochs is 1"),
        (["--tricks", "checkpoint_average"], "checkpoint_average over 2 epochs"),
    ],
)
def test_what_would_begin_after_the_last_epoch_is_refused_at_once(
    flags: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--data", str(tmp_path), "--epochs", "1", *flags]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert "or more --epochs" in error


def test_a_new_submission_forgets_the_held_out_score_of_the_old_one(
    tmp_path: Path, competition_folder: Callable[..., Path], model_folder: Callable[[str], Path]
) -> None:
    folder, model = str(competition_folder()), str(model_folder("bert"))
    flags = ["--data", folder, "--model", model, "--out", str(tmp_path / "runs")]
    flags += ["--epochs", "1", "--folds", "2", "--workers", "1", "--device", "cpu"]
    assert main(flags) == 0
    (run,) = (tmp_path / "runs" / "toy").glob("tiny-bert-none-*")
    assert main(["score", str(run)]) == 0
    assert (run / "held_out.json").is_file()
    assert main([*flags, "--metric", "log_loss"]) == 0
    assert not (run / "held_out.json").exists()
    assert "Held-out" not in (run / "report.html").read_text(encoding="utf-8")
