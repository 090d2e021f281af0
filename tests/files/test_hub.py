"""The hub without a way to it: one connection is tried, the cache is used, and the error names a model on this machine."""

import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from huggingface_hub import constants
from PIL import Image

from trainer.errors import ConfigError
from trainer.files import hub
from trainer.settings import checks

ROOT = Path(__file__).parent.parent.parent
MODEL = "stable-diffusion-v1-5/stable-diffusion-v1-5"


@pytest.fixture
def nowhere(monkeypatch, tmp_path):
    """A hub whose port is closed, and an empty cache; counts the connections that are tried."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{closed.getsockname()[1]}"
    tried = []
    connect = socket.create_connection
    monkeypatch.setattr(socket, "create_connection", lambda *a, **k: tried.append(a) or connect(*a, **k))
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    hub.reachable.cache_clear()
    yield tried
    hub.reachable.cache_clear()


def test_without_a_network_one_connection_is_tried_and_a_folder_is_named(nowhere):
    with pytest.raises(ConfigError, match="not in the local cache and the hub cannot be reached") as caught:
        hub.configurations(MODEL, None)
    assert "--model FOLDER" in caught.value.fix and "HF_HUB_OFFLINE" not in caught.value.fix
    with pytest.raises(ConfigError):
        hub.small("openai/clip-vit-base-patch32", hub.JUDGE)
    assert len(nowhere) == 1


def test_what_is_in_the_cache_is_used_without_a_network(nowhere, tmp_path):
    folder, commit = tmp_path / "models--owner--name", "0" * 40
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(commit)
    (folder / "snapshots" / commit).mkdir(parents=True)
    (folder / "snapshots" / commit / "model_index.json").write_text("{}")
    assert (hub.configurations("owner/name", None) / "model_index.json").is_file()


def test_a_name_that_is_never_found_does_not_keep_one_waiting(nowhere, monkeypatch):
    monkeypatch.setattr(hub, "REACH_SECONDS", 0.1)
    given_up = threading.Event()

    def getaddrinfo(*given, **more):
        given_up.wait(30)
        raise socket.gaierror("a name that nobody knows")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    begun = time.monotonic()
    assert not hub.reachable("https://huggingface.co")
    assert time.monotonic() - begun < 20
    given_up.set()


def test_behind_a_proxy_the_proxy_is_asked(nowhere, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        monkeypatch.setenv("https_proxy", f"127.0.0.1:{proxy.getsockname()[1]}")
        assert hub.reachable("https://huggingface.co")


def test_each_thing_from_the_hub_is_told_how_to_be_had_without_it(nowhere):
    with pytest.raises(ConfigError) as caught:
        hub.early("demo", None, "stabilityai/sd-vae-ft-mse")
    assert "--vae FOLDER" in caught.value.fix and "--model" not in caught.value.fix
    with pytest.raises(ConfigError) as caught:
        checks.judge("dino:facebook/dinov2-base")
    assert "dino:FOLDER" in caught.value.fix and "--model" not in caught.value.fix


@pytest.mark.parametrize(
    ("words", "instead"),
    [
        (["--model", MODEL, "--instance_data_dir", "photos", "--class_name", "dog"], "--model FOLDER"),
        (["--vae", "stabilityai/sd-vae-ft-mse"], "--vae FOLDER"),
        (["--judge", "dino:facebook/dinov2-base"], "dino:FOLDER"),
    ],
)
def test_what_is_on_the_hub_costs_no_import_of_torch_without_a_network(tmp_path, words, instead):
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (64, 64)).save(tmp_path / "photos" / "one.png")
    script = "import sys; from trainer.__main__ import main; print(main(sys.argv[1:]), 'torch' in sys.modules)"
    environment = {
        **os.environ,
        "HF_HUB_CACHE": str(tmp_path / "hub"),
        "HF_ENDPOINT": "http://127.0.0.1:1",
        "PYTHONPATH": str(ROOT),
    }
    environment.pop("HF_HUB_OFFLINE", None)
    done = subprocess.run(
        [sys.executable, "-c", script, *words, "--output_dir", str(tmp_path / "run")],
        cwd=tmp_path, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout.strip() == "2 False", done.stderr
    assert "cannot be reached" in done.stderr and instead in done.stderr and "Retrying" not in done.stderr
