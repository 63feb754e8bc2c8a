"""Weights & Biases that never blocks: offline when there is no key or no network."""

from __future__ import annotations

import logging
import netrc
import os
import socket
import warnings
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlparse
from urllib.request import getproxies, proxy_bypass

import wandb
from lightning.pytorch.loggers import WandbLogger

log = logging.getLogger(__name__)

_PATIENCE = 30  # seconds for the server to begin a run


def quiet_lightning() -> None:
    """Drop Lightning's advertisements and warnings that are not news here."""
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.rank_zero"):
        logging.getLogger(name).addFilter(lambda record: "Tip:" not in record.getMessage())
    # the folder holds config.yaml already, and evaluation has one photo per step by design
    warnings.filterwarnings("ignore", message="Experiment logs directory .* exists and is not empty")
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*treespec, LeafSpec.*")
    # a resumed run has a folder of its own, and looks for its best step there
    warnings.filterwarnings("ignore", message=".*The dirpath has changed from.*")
    # scores are summed over processes before they are logged
    warnings.filterwarnings("ignore", message=r".*sync_dist=True.*")
    # by DDP, of 1x1 convolutions with channels last in memory: along edges of length 1 strides mean nothing
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    # norms with frozen statistics, by recipe
    warnings.filterwarnings("ignore", message=r".*module\(s\) in eval mode at the start of training.*")


def wandb_mode(timeout: float = 3.0) -> str:
    """``WANDB_MODE`` if it is set; else ``online`` when there is a key and the server answers, else ``offline``."""
    chosen = os.environ.get("WANDB_MODE")
    if chosen:
        return chosen
    settings = wandb.setup().settings
    if settings.mode in ("offline", "disabled"):  # by "wandb offline" in this folder
        return str(settings.mode)
    address = urlparse(settings.base_url)
    proxies, host = getproxies(), address.hostname or ""
    if not (settings.api_key or settings.identity_token_file or _has_netrc_key(address.netloc)):
        return "offline"
    if address.scheme in proxies and not proxy_bypass(host):
        return "online"  # only W&B itself knows how to get through
    try:
        with socket.create_connection((host, address.port or 443), timeout=timeout):
            return "online"
    except OSError:
        log.warning("W&B has a key, but %s does not answer: logging offline (wandb sync later)", host)
        return "offline"


def _has_netrc_key(host: str) -> bool:
    """Whether ``wandb login`` has left a key for a host."""
    given = os.environ.get("NETRC")
    files = [Path(given)] if given else [Path("~/.netrc").expanduser(), Path("~/_netrc").expanduser()]
    file = next((file for file in files if file.is_file()), None)
    try:
        return file is not None and netrc.netrc(file).authenticators(host) is not None
    except (netrc.NetrcParseError, OSError):
        return False


def wandb_logger(
    project: str, name: str, save_dir: str, config: dict[str, Any], **options: Any
) -> WandbLogger:
    """A logger for one run, whose configuration is the resolved one; offline where W&B refuses or does not answer.

    Args:
        options: of ``WandbLogger`` and ``wandb.init``; ``mode`` or ``offline`` decide whatever key there is.
    """
    os.makedirs(save_dir, exist_ok=True)
    mode = options.pop("mode", None) or ("offline" if options.pop("offline", False) else wandb_mode())
    settings: dict[str, Any] = {
        "log_model": False,
        # at the end a run shows its own table, and W&B's of all metrics would push it off the screen
        "settings": wandb.Settings(
            init_timeout=_PATIENCE, quiet=os.environ.get("WANDB_QUIET", "true") != "false"
        ),
    } | options
    make = partial(_logger, project=project, name=name, save_dir=save_dir, config=config, **settings)
    logger = make(mode=mode)
    if mode == "online":
        try:
            logger.experiment  # noqa: B018  (begins the run)
        except wandb.errors.Error as error:
            log.warning("W&B refuses (%s): logging offline (wandb sync later)", error)
            logger = make(mode="offline")
    return logger


def _logger(**options: Any) -> WandbLogger:
    logger = WandbLogger(**options)
    logger._wandb_init.pop("anonymous", None)  # which Lightning hands on, and W&B warns of
    return logger
