"""W&B is online only with a key and a server that answers."""

from __future__ import annotations

import logging
import socket
from pathlib import Path

import pytest
import wandb

from src.engine.logging import wandb_logger, wandb_mode


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> socket.socket:
    """A server that listens, as W&B's address; no key anywhere."""
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    listening = socket.create_server(("127.0.0.1", 0))
    settings = wandb.setup().settings
    monkeypatch.setattr(settings, "api_key", None)
    monkeypatch.setattr(settings, "base_url", f"http://127.0.0.1:{listening.getsockname()[1]}")
    return listening


def write_key(tmp_path: Path, server: socket.socket) -> None:
    port = server.getsockname()[1]
    (tmp_path / "netrc").write_text(f"machine 127.0.0.1:{port} login user password {'0' * 40}\n")


def test_offline_without_a_key(server: socket.socket) -> None:
    with server:
        assert wandb_mode() == "offline"


def test_online_with_a_key_of_a_login(server: socket.socket, tmp_path: Path) -> None:
    write_key(tmp_path, server)
    with server:
        assert wandb_mode() == "online"


def test_offline_when_the_server_does_not_answer(
    server: socket.socket, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_key(tmp_path, server)
    server.close()
    with caplog.at_level(logging.WARNING):
        assert wandb_mode(timeout=0.5) == "offline"
    assert "does not answer" in caplog.text


@pytest.mark.parametrize("mode", ["offline", "disabled"])
def test_what_was_chosen_for_the_folder_counts(
    server: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    write_key(tmp_path, server)
    monkeypatch.setattr(wandb.setup().settings, "mode", mode)  # as "wandb offline" leaves it
    with server:
        assert wandb_mode() == mode


def test_a_broken_file_is_no_key(server: socket.socket, tmp_path: Path) -> None:
    (tmp_path / "netrc").write_text("machine")
    with server:
        assert wandb_mode() == "offline"


def test_the_environment_decides(server: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    with server:
        assert wandb_mode() == "disabled"


def test_a_proxy_is_left_to_wandb(
    server: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_key(tmp_path, server)
    server.close()
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.setenv("http_proxy", "http://proxy.example:3128")
    assert wandb_mode(timeout=0.5) == "online"


def test_a_server_that_refuses_costs_no_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    begin = wandb.init

    def refuse(**options: object) -> object:
        if options["mode"] == "online":
            raise wandb.errors.CommError("401: unknown key")
        return begin(**options)

    monkeypatch.setattr(wandb, "init", refuse)
    monkeypatch.setenv("WANDB_MODE", "online")
    try:
        logger = wandb_logger(project="p", name="n", save_dir=str(tmp_path), config={})
        assert logger.experiment.settings.mode == "offline"
    finally:
        wandb.finish()
    assert "401: unknown key" in caplog.text


@pytest.mark.parametrize("chosen", [{"mode": "disabled"}, {"offline": True, "log_model": False}])
def test_what_the_command_says_counts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, chosen: dict[str, object]
) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    modes: list[object] = []
    begin = wandb.init

    def noted(**options: object) -> object:
        modes.append(options["mode"])
        return begin(**options | {"mode": "disabled"})

    monkeypatch.setattr(wandb, "init", noted)
    try:
        logger = wandb_logger(project="p", name="n", save_dir=str(tmp_path), config={}, **chosen)
        assert logger.experiment is not None
    finally:
        wandb.finish()
    assert modes == [chosen.get("mode", "offline")]
