"""Joining a Ray cluster, or starting one on this machine for as long as it is needed."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import ray

from weightpager.errors import ConfigError

AUTO = "auto"
_STORE_BYTES = 512 << 20
"""Of shared memory for what goes between processes, in a cluster of our own; Ray would take a third of the memory."""


@contextmanager
def cluster(address: str = AUTO, *, cpus: int | None = None) -> Iterator[None]:
    """Be part of a cluster inside the block.

    Args:
        address: of a cluster, such as ``10.0.0.1:6379``; "auto" joins the one that runs on this machine or that
            ``RAY_ADDRESS`` names, and starts one where there is none.
        cpus: that a cluster of our own has; None for those of the machine.

    Raises:
        ConfigError: there is no cluster at the address.
    """
    if not _joined(address):
        ray.init(
            address="local",
            num_cpus=cpus,
            object_store_memory=_STORE_BYTES,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.WARNING,
        )
    try:
        yield
    finally:
        ray.shutdown()


def _joined(address: str) -> bool:
    """Whether the cluster has been joined; False if "auto" finds none."""
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
    except (ConnectionError, ValueError, RuntimeError) as error:
        if address == AUTO and isinstance(error, ConnectionError):
            return False
        raise ConfigError(
            f"ray: expected a cluster at {address}, found none: {error}; 'ray status --address {address}' shows one, "
            f"and 'auto' starts one here"
        ) from error
    return True
