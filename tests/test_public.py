"""What users import is a promise."""

import inspect
import subprocess
import sys

import pytest

import weightpager as wp


def test_the_public_names_are_these() -> None:
    raised = [name for name, each in vars(wp.errors).items() if inspect.isclass(each) and issubclass(each, Exception)]
    others = [
        "Bundle",
        "BundleChange",
        "Engine",
        "EngineConfig",
        "EngineReport",
        "ForecastReport",
        "Models",
        "NativeTask",
        "PicturePrompt",
        "Planner",
        "Prediction",
        "ResidencyMap",
        "SwitchReport",
        "Visit",
        "compile",
        "errors",
        "load",
    ]
    assert wp.__all__ == sorted([*raised, *others])
    assert all(getattr(wp, name) for name in wp.__all__)
    assert {getattr(wp, name) for name in raised} == {getattr(wp.errors, name) for name in raised}


def test_only_the_public_names_are_listed() -> None:
    assert dir(wp) == sorted([*wp.__all__, "__version__"])


def test_what_a_device_can_name_needs_neither_torch_nor_the_compiler() -> None:
    names = [name for name in wp.__all__ if name != "compile"]
    code = f"import sys, weightpager; [getattr(weightpager, name) for name in {names}]; "
    code += "assert not {'torch', 'transformers', 'weightpager.compiler'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("kind", ["assistant", "camera"])
def test_a_bundle_is_verified_without_torch(request: pytest.FixtureRequest, kind: str) -> None:
    bundle = request.getfixturevalue(f"{kind}_bundle")
    code = f"import sys; from weightpager.backends.verify import verify; assert not verify({str(bundle)!r}).problems; "
    code += "assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
def test_an_engine_needs_no_compiler() -> None:
    for imported, absent in (
        ("weightpager.engine, weightpager.backends.native.backend", {"torch", "transformers", "scipy", "typer"}),
        ("weightpager.engine, weightpager.backends.torch.export", set()),  # transformers takes scipy where it is
    ):
        absent |= {"datasets", "sklearn", "weightpager.compiler"}
        code = f"import sys, {imported}; assert not {absent!r} & set(sys.modules)"
        subprocess.run([sys.executable, "-c", code], check=True)
