from __future__ import annotations

import sys

import pytest

from weightpager.errors import ConfigError
from weightpager.machine.packages import check_installed, is_installed


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
