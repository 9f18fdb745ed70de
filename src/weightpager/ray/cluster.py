"""Joining a Ray cluster, or starting one on this machine for as long as it is needed."""

from __future__ import annotations

import logging
import os
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray._private.services import find_bootstrap_address, find_gcs_addresses

from weightpager.errors import ConfigError, first_line

AUTO, LOCAL = "auto", "local"
"""A cluster that runs, or else one that is started; one that is started in any case."""

_SECONDS = 5.0
"""After which a machine that says nothing isn't there. Ray itself would try for a minute."""

_QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}


@dataclass(frozen=True)
class _StatedAddress:
    """A cluster's address.

    Attributes:
        key: where it was stated.
        otherwise: what to do if it is wrong.
    """

    address: str
    key: str = "--ray"
    otherwise: str = "take auto"


@contextmanager
def cluster(address: str, **own: Any) -> Iterator[bool]:
    """Be part of a cluster inside the block; yields whether it was started for that, and then ends with the block.

    Args:
        address: ``HOST:PORT`` of a cluster's head; ``local`` for one that is started here; or ``auto``: the cluster
            that this process is connected to, that which ``RAY_ADDRESS`` names, one that ``ray start`` has made this
            machine a part of, or else one that is started here.
        own: of `ray.init`, for a cluster that is started.

    Raises:
        ConfigError: there is no cluster at the address, or none can be started.
    """
    joined = address == AUTO and ray.is_initialized()
    started = not joined and _connect(address, own)
    try:
        yield started
    finally:
        if not joined:
            ray.shutdown()


def _connect(address: str, own: dict[str, Any]) -> bool:
    """Connect to a cluster; whether it was started for that."""
    stated = _StatedAddress(address)
    if address == AUTO:
        stated = _StatedAddress(os.environ.get("RAY_ADDRESS", ""), "RAY_ADDRESS", "unset RAY_ADDRESS")
    if stated.address not in ("", AUTO, LOCAL):
        _check(stated)
        _join(stated, stated.address)
        return False
    if stated.address != LOCAL and _joins():
        return False
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nobody is told of it
    _start(own)
    return True


def _joins() -> bool:
    """Join the cluster that ``ray start`` has made this machine a part of, if there is one.

    Ray itself would join any cluster that runs here, also one that belongs to another process and ends with it.
    """
    address = find_bootstrap_address(None)
    if address is None or address not in find_gcs_addresses():  # type: ignore[no-untyped-call]
        return False
    _join(_StatedAddress(address, otherwise="take local"), AUTO)
    return True


def _check(stated: _StatedAddress) -> None:
    """See that something answers at an address before Ray tries for long."""
    host, _, port = stated.address.rpartition(":")
    expected = (
        f"{stated.key}: expected auto, or HOST:PORT of a Ray cluster's head such as 10.0.0.1:6379, "
        f"found {stated.address!r}"
    )
    if "://" in stated.address:
        raise ConfigError(
            f"{expected}; run the command on a machine of the cluster, with the address of its head, "
            f"or {stated.otherwise}"
        )
    if not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise ConfigError(expected if stated.key == "--ray" else f"{expected}; correct it, or {stated.otherwise}")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_SECONDS).close()
    except OSError as error:
        why = error.strerror or first_line(error)
        raise ConfigError(
            f"{expected}, where nothing answers ({why}); start one with 'ray start --head', or {stated.otherwise}"
        ) from error


def _join(stated: _StatedAddress, address: str) -> None:
    """Join the cluster at an address of `ray.init`'s, which is where ``stated`` says."""
    expected = f"{stated.key}: expected a Ray cluster at {stated.address} that this machine is part of"
    with _refused(expected, f"join it with 'ray start --address', or {stated.otherwise}"):
        _ray_init(address=address)


def _start(own: dict[str, Any]) -> None:
    with _refused("--ray: expected to start Ray on this machine", "mend that, or take a running cluster's HOST:PORT"):
        _ray_init(address=LOCAL, include_dashboard=False, **own)


@contextmanager
def _refused(expected: str, advice: str) -> Iterator[None]:
    """Raise what Ray says in the block as a `ConfigError`."""
    try:
        yield
    except Exception as error:  # a plain one, where the machine is too busy for Ray to start in time
        raise ConfigError(f"{expected}, found: {' '.join(str(error).split())}; {advice}") from error


def _ray_init(**options: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ray.init(**_QUIET, **options)
