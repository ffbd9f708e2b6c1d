"""`prepare` without a network: an archive of the same layout, made here."""

from __future__ import annotations

import hashlib
import io
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from competition_kit.cli import main
from competition_kit.data import prepare as module
from competition_kit.data.competition import load_competition
from competition_kit.data.folds import audit, make_folds
from competition_kit.data.prepare import SETS, is_wanting, prepare
from competition_kit.data.tables import read_table
from competition_kit.errors import InputError

DOCUMENTS, SENTENCES = 20, 10


def snippets(grouped: bool) -> bytes:
    """Return lines of id, mean sentiment, text, as the package has them."""
    lines = []
    for number in range(DOCUMENTS * SENTENCES):
        document, sentence = divmod(number, SENTENCES)
        row_id = f"{document + 1}_{sentence + 1}" if grouped else str(number + 1)
        text = f"no {number}  says &quot;caf\u00e9 &amp; \u00a0tea&quot;"
        lines.append(f"{row_id}\t{(number % 9 - 4) * 0.4:.1f}\t{text}")
    row_id = "1_99" if grouped else "999"
    lines.append(f"{row_id}\t0.0\tNO 0 says &quot;Caf\u00e9 & tea&quot;")  # repeats the first text
    return ("\r\n".join(lines) + "\r\n").encode()


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    archive.addfile(info, io.BytesIO(content))


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make an archive like the real one; the module is told its checksums."""
    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w:gz") as files:
        for snippet_set in {s.file: s for s in SETS.values()}.values():
            add(files, f"hutto_ICWSM_2014/{snippet_set.file}", snippets(snippet_set.grouped))
    path = tmp_path / "made" / module.ARCHIVE
    path.parent.mkdir()
    with tarfile.open(path, "w:gz") as outer:
        add(outer, module.INNER, inner.getvalue())
    monkeypatch.setattr(module, "ARCHIVE_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    for name, snippet_set in SETS.items():
        sha256 = hashlib.sha256(snippets(snippet_set.grouped)).hexdigest()
        rows = snippet_set.rows and 100
        monkeypatch.setitem(SETS, name, replace(snippet_set, sha256=sha256, rows=rows))
    return path


@pytest.fixture
def pip(archive: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Let `pip download` hand over the archive; return its calls."""
    calls: list[list[str]] = []
    real = subprocess.run

    def run(command: list[str], **options: Any) -> Any:
        if "pip" not in command:  # git, for the commit that a run notes
            return real(command, **options)
        calls.append(command)
        wanted = Path(command[command.index("--requirement") + 1]).read_text(encoding="utf-8")
        assert wanted == f"{module.PACKAGE} --hash=sha256:{module.ARCHIVE_SHA256}\n"
        shutil.copy(archive, Path(command[command.index("--dest") + 1]) / module.ARCHIVE)
        return SimpleNamespace(returncode=0, stderr="")

    monkeypatch.setattr(subprocess, "run", run)
    return calls


@pytest.mark.parametrize("name", sorted(SETS))
def test_a_prepared_folder_is_a_valid_competition(
    tmp_path: Path, pip: list[list[str]], name: str
) -> None:
    folder = prepare(name, tmp_path / "data", tmp_path / "cache")
    assert folder == tmp_path / "data" / name
    competition = load_competition(folder)
    assert competition.classes == ("negative", "neutral", "positive")
    grouped = SETS[name].grouped
    assert competition.rules.cv.scheme == ("stratified_group" if grouped else "stratified")
    assert competition.rules.title == SETS[name].title
    total = 100 if name == "tweets" else DOCUMENTS * SENTENCES
    assert len(competition.train) + len(competition.test) == total, "the repeat is dropped"
    assert len(competition.test) == round(0.2 * total)
    assert audit(competition, make_folds(competition)) == []
    assert competition.inferred == (), "the toml leaves nothing open"


@pytest.mark.parametrize("name", sorted(SETS))
def test_solution_sample_and_test_have_the_same_ids(
    tmp_path: Path, pip: list[list[str]], name: str
) -> None:
    folder = prepare(name, tmp_path / "data", tmp_path / "cache")
    tables = {s: read_table(folder / f"{s}.csv") for s in ("test", "solution", "sample_submission")}
    ids = tables["test"]["id"].tolist()
    assert tables["solution"]["id"].tolist() == ids
    assert tables["sample_submission"]["id"].tolist() == ids
    assert "label" not in tables["test"].columns
    train = read_table(folder / "train.csv")
    assert not set(ids) & set(train["id"])
    assert tables["sample_submission"]["label"].unique().tolist() == [train["label"].mode()[0]]
    assert list(tables["solution"].columns) == ["id", "label"]


@pytest.mark.parametrize("name", ["amazon", "nyt"])
def test_no_document_is_in_train_and_in_test(
    tmp_path: Path, pip: list[list[str]], name: str
) -> None:
    folder = prepare(name, tmp_path / "data", tmp_path / "cache")
    train, test = read_table(folder / "train.csv"), read_table(folder / "test.csv")
    assert not set(train["doc"]) & set(test["doc"])
    assert len(set(train["doc"])) + len(set(test["doc"])) == DOCUMENTS
    for table in (train, test):
        assert table["doc"].tolist() == [row_id.split("_")[0] for row_id in table["id"]]


def test_labels_follow_the_stated_cuts_and_texts_are_unescaped(
    tmp_path: Path, pip: list[list[str]]
) -> None:
    folder = prepare("movies", tmp_path / "data", tmp_path / "cache")
    test = read_table(folder / "test.csv").merge(read_table(folder / "solution.csv"), on="id")
    rows = pd.concat([read_table(folder / "train.csv"), test])
    for row_id, text, label in rows[["id", "text", "label"]].itertuples(index=False):
        number = int(row_id) - 1
        assert text == f'no {number} says "café & tea"'
        step = number % 9 - 4  # of 0.4 each: 0.8 is positive, 0.4 is not
        assert label == ("positive" if step >= 2 else "negative" if step <= -2 else "neutral")


def test_every_call_makes_the_same_files(tmp_path: Path, pip: list[list[str]]) -> None:
    first = prepare("tweets", tmp_path / "a", tmp_path / "cache")
    second = prepare("tweets", tmp_path / "b", tmp_path / "cache")
    names = sorted(path.name for path in first.iterdir())
    assert names == sorted(path.name for path in second.iterdir())
    for name in names:
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_the_archive_is_downloaded_once_and_kept(tmp_path: Path, pip: list[list[str]]) -> None:
    for name in SETS:
        prepare(name, tmp_path / "data", tmp_path / "cache")
    assert len(pip) == 1
    assert "--no-deps" in pip[0]
    assert (tmp_path / "cache" / module.ARCHIVE).is_file()


def test_a_second_call_changes_nothing(tmp_path: Path, pip: list[list[str]]) -> None:
    folder = prepare("tweets", tmp_path / "data", tmp_path / "cache")
    shutil.rmtree(tmp_path / "cache")
    (folder / "train.csv").write_text("mine", encoding="utf-8")
    assert prepare("tweets", tmp_path / "data", tmp_path / "cache") == folder
    assert (folder / "train.csv").read_text(encoding="utf-8") == "mine"
    assert len(pip) == 1


def test_a_folder_that_was_left_half_made_is_finished(
    tmp_path: Path, pip: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = prepare("nyt", tmp_path / "a", tmp_path / "cache")
    write = module.write_csv
    written: list[Path] = []

    def stop_at_third(path: Path, frame: pd.DataFrame) -> None:
        if len(written) == 2:
            raise KeyboardInterrupt
        write(path, frame)
        written.append(path)

    monkeypatch.setattr(module, "write_csv", stop_at_third)
    with pytest.raises(KeyboardInterrupt):
        prepare("nyt", tmp_path / "b", tmp_path / "cache")
    assert not (tmp_path / "b" / "nyt" / "competition.toml").exists()
    assert is_wanting(tmp_path / "b" / "nyt"), "a train.csv alone does not make it whole"
    monkeypatch.setattr(module, "write_csv", write)
    again = prepare("nyt", tmp_path / "b", tmp_path / "cache")
    assert sorted(path.name for path in again.iterdir()) == sorted(p.name for p in whole.iterdir())
    for path in whole.iterdir():
        assert (again / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("name", ["train.csv", "train.tsv", "solution.csv"])
def test_somebodys_own_tables_are_not_written_over(
    tmp_path: Path, pip: list[list[str]], name: str
) -> None:
    own = tmp_path / "data" / "amazon" / name
    own.parent.mkdir(parents=True)
    own.write_text("mine", encoding="utf-8")
    with pytest.raises(InputError, match=r"amazon: holds .* rename the folder, or .* --data"):
        prepare("amazon", tmp_path / "data", tmp_path / "cache")
    assert [path.read_text(encoding="utf-8") for path in own.parent.iterdir()] == ["mine"]
    assert pip == []


def test_a_damaged_archive_in_the_cache_is_replaced(
    tmp_path: Path, archive: Path, pip: list[list[str]]
) -> None:
    kept = tmp_path / "cache" / module.ARCHIVE
    kept.parent.mkdir()
    kept.write_bytes(archive.read_bytes()[:-7])
    prepare("tweets", tmp_path / "data", tmp_path / "cache")
    assert len(pip) == 1
    assert kept.read_bytes() == archive.read_bytes()


@pytest.mark.parametrize(
    ("stderr", "said"),
    [
        (
            "WARNING: Retrying\nERROR: Could not find a version\nERROR: No matching distribution\n",
            "ERROR: No matching distribution",
        ),
        ("/usr/bin/python: No module named pip\n", "No module named pip"),
        ("", "pip gave no reason"),
    ],
)
def test_a_pip_that_fails_gives_one_clear_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stderr: str, said: str
) -> None:
    monkeypatch.setattr(
        subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=1, stderr=stderr)
    )
    with pytest.raises(InputError) as caught:
        prepare("tweets", tmp_path / "data", tmp_path / "cache")
    message = str(caught.value)
    assert "\n" not in message
    assert f"could not be downloaded ({said}" in message or f": {said})" in message
    assert f"put {module.ARCHIVE} into {tmp_path / 'cache'} yourself" in message
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("what", ["ARCHIVE_SHA256", "file"])
def test_what_is_not_the_known_file_is_refused(
    tmp_path: Path, pip: list[list[str]], monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    if what == "file":
        monkeypatch.setitem(SETS, "movies", replace(SETS["movies"], sha256="0" * 64))
    else:
        monkeypatch.setattr(module, what, "0" * 64)
    with pytest.raises(InputError, match=r"is not the known (archive|file) \(sha256\)"):
        prepare("movies", tmp_path / "data", tmp_path / "cache")
    assert not (tmp_path / "data").exists()


def test_the_cache_is_where_the_user_wants_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pip: list[list[str]]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    prepare("tweets", tmp_path / "data")
    assert (tmp_path / "xdg" / "competition-kit" / module.ARCHIVE).is_file()


def test_the_default_cache_is_in_the_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert module._default_cache() == tmp_path / ".cache" / "competition-kit"


# -- the command line, in a folder of its own ----------------------------------------------------


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder that commands run in; data/ and the cache are below it."""
    place = tmp_path / "work"
    place.mkdir()
    monkeypatch.chdir(place)
    monkeypatch.setenv("XDG_CACHE_HOME", str(place / "cache"))
    return place


def test_the_first_command_of_the_readme_prepares_its_data_once(
    workplace: Path,
    pip: list[list[str]],
    model_folder: Callable[[str], Path],
    one_core: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = ["--adv", "fgm", "--model", str(model_folder("bert")), "--device", "cpu"]
    command += ["--epochs", "1", "--folds", "2", "--workers", "1"]

    assert main(command) == 0

    assert "preparing data/tweets (once)" in capsys.readouterr().err.splitlines()
    assert (workplace / "data" / "tweets" / "competition.toml").is_file()
    (submission,) = (workplace / "runs" / "tweets").glob("tiny-bert-fgm-*/submission.csv")
    sample = read_table(workplace / "data" / "tweets" / "sample_submission.csv")
    assert read_table(submission)["id"].tolist() == sample["id"].tolist()

    assert main(command) == 0

    output, error = capsys.readouterr()
    assert "preparing" not in error and "(0 computed now)" in output
    assert len(pip) == 1


def test_an_own_competition_in_the_default_folder_is_the_one_that_is_used(
    workplace: Path,
    pip: list[list[str]],
    competition_folder: Callable[..., Path],
    model_folder: Callable[[str], Path],
    one_core: None,
) -> None:
    """Its competition.toml is optional, there as elsewhere."""
    shutil.copytree(competition_folder(), workplace / "data" / "tweets")
    command = ["--model", str(model_folder("bert")), "--device", "cpu", "--epochs", "1"]

    assert main([*command, "--folds", "2", "--workers", "1"]) == 0

    (submission,) = (workplace / "runs" / "tweets").glob("*/submission.csv")
    sample = read_table(workplace / "data" / "tweets" / "sample_submission.csv")
    assert read_table(submission)["id"].tolist() == sample["id"].tolist()
    assert not (workplace / "data" / "tweets" / "competition.toml").exists()
    assert pip == []


def test_prepare_makes_the_named_folders_and_counts_their_rows(
    workplace: Path, pip: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["prepare", "nyt", "tweets"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "data/nyt: 160 training rows, 40 test rows",
        "data/tweets: 80 training rows, 20 test rows",
    ]
    assert sorted(path.name for path in (workplace / "data").iterdir()) == ["nyt", "tweets"]

    assert main(["prepare", "movies", "--data", "elsewhere"]) == 0
    assert load_competition(workplace / "elsewhere" / "movies").classes[0] == "negative"
    assert not (workplace / "data" / "movies").exists()


def test_the_command_line_offers_every_set() -> None:
    from competition_kit.commands.prepare import PREPARED

    assert tuple(SETS) == PREPARED
