from __future__ import annotations

import sys
from importlib import import_module

import pytest

from weightpager.errors import ConfigError
from weightpager.machine.packages import TORCH, check_installed, is_installed, needing_torch


def test_a_package_that_is_there_passes() -> None:
    assert is_installed("numpy")
    check_installed("numpy", "torch", "to count")


@pytest.mark.parametrize("package", ["nobody_has_this", "json"])
def test_a_missing_package_is_named_with_the_extra_that_brings_it(
    package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "json", None)  # somebody has forbidden it
    with pytest.raises(ConfigError) as refused:
        check_installed(package, "serve", "to answer")
    assert str(refused.value) == f"expected the package {package!r}, found none; install 'weightpager[serve]' to answer"


@pytest.mark.parametrize("package", TORCH)
def test_what_needs_torch_is_refused_in_the_same_words(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError) as refused, needing_torch("to train"):
        import_module(package)
    assert str(refused.value) == f"expected the package {package!r}, found none; install 'weightpager[torch]' to train"


def test_another_module_that_is_missing_is_no_matter_of_what_is_installed() -> None:
    with pytest.raises(ModuleNotFoundError, match="nobody_has_this"), needing_torch("to train"):
        import_module("nobody_has_this")
