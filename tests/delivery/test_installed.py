"""What a device remembers of its versions, and what of it a kill at any step leaves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from damage import contents
from fleet import NAME, Device, Fleet
from weightpager.delivery.pulling.installed import STATE
from weightpager.delivery.pulling.pull import Check, Pulled, roll_back
from weightpager.errors import DeliveryError


class _KilledError(BaseException):
    pass


def killed(step: int, command: Callable[[], object]) -> bool:
    """Run a command that dies after so many steps: right before or right after it changes the state or the link.

    Returns:
        Whether it died; else it had fewer steps.
    """
    left = iter(range(step))

    def dying(change: Callable[..., object]) -> Callable[..., object]:
        def change_or_die(path: Path, *arguments: Any, **options: Any) -> object:
            is_step = Path(*arguments or (path,)).name in ("state.json", f"{NAME}.bundle")
            if is_step and next(left, None) is None:
                raise _KilledError
            done = change(path, *arguments, **options)
            if is_step and next(left, None) is None:
                raise _KilledError
            return done

        return change_or_die

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "replace", dying(Path.replace))
        patch.setattr(Path, "unlink", dying(Path.unlink))
        try:
            command()
        except _KilledError:
            return True
    return False


def kills(fleet: Fleet, folder: Path, command: Callable[[Fleet], object]) -> Iterator[Fleet]:
    """Fleets in which a command died, in each one step later, and at last one in which it ended."""
    died, step = True, 0
    while died:
        trial = fleet.copied(folder / str(step))
        died = killed(step, partial(command, trial))
        yield trial
        step += 1
    assert step > 6


def pull_checked(fleet: Fleet, device: Device | None = None) -> Pulled:
    """A pull that lets only the old version pass."""

    def check(bundle: Path) -> str | None:
        return None if contents(bundle) == contents(fleet.old) else "it is no good"

    return (device or fleet.device).pull(fleet.place.root, check=check)


@pytest.mark.parametrize("checked_next", [True, False])
def test_a_version_that_failed_its_check_goes_whatever_stopped_that(
    fleet: Fleet, tmp_path: Path, checked_next: bool
) -> None:
    for trial in kills(fleet, tmp_path, pull_checked):
        if not checked_next and contents(trial.device.bundle) == contents(trial.new):
            assert trial.device.pull(trial.place.root).outcome == "current"
        assert pull_checked(trial).outcome in ("rolled back", "refused")
        assert contents(trial.device.bundle) == contents(trial.old)
        assert trial.device.pull(trial.place.root).outcome == "refused"


def test_a_first_version_that_failed_its_check_goes_whatever_stopped_that(fleet: Fleet, tmp_path: Path) -> None:
    def pull_first(trial: Fleet) -> Pulled:
        return pull_checked(trial, Device(trial.device.into / "fresh", trial.place.trust))

    for trial in kills(fleet, tmp_path, pull_first):
        assert pull_first(trial).in_use is None
        assert not (trial.device.into / "fresh" / trial.device.bundle.name).is_symlink()


def test_a_version_that_passes_its_check_in_the_end_is_like_any_other(fleet: Fleet, tmp_path: Path) -> None:
    for trial in kills(fleet, tmp_path, pull_checked):
        if contents(trial.device.bundle) == contents(trial.new):
            assert trial.device.pull(trial.place.root, check=lambda _: None).outcome == "installed"
            trial.place.publish(trial.old, version="3")
            assert trial.device.pull(trial.place.root, check=lambda _: "bad").in_use == "2"


def test_a_check_that_was_interrupted_is_made_up_for_before_a_newer_version_comes(fleet: Fleet) -> None:
    def interrupted(_: Path) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fleet.device.pull(fleet.place.root, check=interrupted)
    fleet.place.publish(fleet.old, version="3")
    done = fleet.device.pull(fleet.place.root, check=lambda _: "bad")
    assert (done.outcome, done.in_use) == ("rolled back", "1")


def versions(device: Device) -> Path:
    return device.into / STATE / NAME / "versions"


@pytest.mark.parametrize("deleted_first", ["bundle", "version.json"])
def test_half_of_a_version_never_counts_as_one(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch, deleted_first: str
) -> None:
    key = fleet.device.bundle.resolve().parent.name

    def dies(folder: Path, **_: object) -> None:
        if folder.name.startswith(key):
            file = next(path for path in sorted((folder / deleted_first).rglob("*")) or [folder / deleted_first])
            file.unlink()
            raise _KilledError

    with monkeypatch.context() as patch, pytest.raises(_KilledError):
        patch.setattr("shutil.rmtree", dies)
        fleet.device.pull(fleet.place.root, keep=1)
    with pytest.raises(DeliveryError, match="expected 1, found none"):
        roll_back(fleet.device.into, NAME, to="1")
    fleet.place.publish(fleet.old)
    assert fleet.device.pull(fleet.place.root).version == "1"
    assert contents(fleet.device.bundle) == contents(fleet.old)
    assert list(versions(fleet.device).parent.glob("partial/*")) == []


def test_a_folder_without_a_bundle_is_no_version(fleet: Fleet) -> None:
    (key,) = (path.name for path in versions(fleet.device).iterdir())
    fleet.device.pull(fleet.place.root, keep=1)
    (versions(fleet.device) / key).mkdir()
    (versions(fleet.device) / key / "version.json").touch()
    fleet.place.publish(fleet.old)
    assert fleet.device.pull(fleet.place.root).version == "1"
    assert contents(fleet.device.bundle) == contents(fleet.old)


def test_what_cant_be_deleted_stays_whole(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    rename = Path.rename

    def refuses(path: Path, to: Path) -> Path:
        if path.parent.name == "versions":
            raise PermissionError(1, "Operation not permitted")
        return rename(path, to)

    monkeypatch.setattr(Path, "rename", refuses)
    fleet.device.pull(fleet.place.root, keep=1)
    assert roll_back(fleet.device.into, NAME).now == "1"
    assert contents(fleet.device.bundle) == contents(fleet.old)


def test_a_version_that_was_rolled_back_takes_no_place_among_those_that_stay(fleet: Fleet) -> None:
    assert pull_checked(fleet).outcome == "rolled back"
    fleet.place.publish(fleet.old, version="3")
    assert fleet.device.pull(fleet.place.root, keep=2).in_use == "3"
    assert sorted(path.name[0] for path in versions(fleet.device).iterdir()) == ["1", "3"]
    assert roll_back(fleet.device.into, NAME).now == "1"


def pull_back(fleet: Fleet, check: Check | None = None) -> Pulled:
    """The publisher withdraws the new version by publishing the old bundle again."""
    assert fleet.device.pull(fleet.place.root).in_use == "2"
    fleet.place.publish(fleet.old)
    return fleet.device.pull(fleet.place.root, check=check)


def test_the_version_before_comes_back_when_a_channel_moved_back_to_one_that_fails(fleet: Fleet) -> None:
    done = pull_back(fleet, lambda _: "bad")
    assert (done.outcome, done.version, done.in_use) == ("rolled back", "1", "2")
    assert contents(fleet.device.bundle) == contents(fleet.new)


@pytest.mark.parametrize("goes_back", ["by a pull", "by a rollback"])
def test_a_version_that_fails_gives_way_to_the_one_that_it_replaced(fleet: Fleet, goes_back: str) -> None:
    if goes_back == "by a pull":
        pull_back(fleet)
    else:
        fleet.device.pull(fleet.place.root)
        fleet.place.publish(fleet.old, version="2b")
        fleet.device.pull(fleet.place.root, keep=3)
        roll_back(fleet.device.into, NAME, to="1")
    fleet.place.publish(fleet.new, version="3")
    assert fleet.device.pull(fleet.place.root, check=lambda _: "bad").in_use == "1"


def test_the_version_that_a_pull_replaced_stays_and_is_what_a_rollback_goes_to(fleet: Fleet) -> None:
    assert pull_back(fleet).in_use == "1"
    fleet.place.publish(fleet.new, version="3")
    assert fleet.device.pull(fleet.place.root, keep=2).in_use == "3"
    assert sorted(path.name[0] for path in versions(fleet.device).iterdir()) == ["1", "3"]
    assert roll_back(fleet.device.into, NAME).now == "1"


def test_a_rollback_undoes_a_pull_that_went_back(fleet: Fleet) -> None:
    assert pull_back(fleet).in_use == "1"
    assert roll_back(fleet.device.into, NAME).now == "2"
    assert fleet.device.pull(fleet.place.root).outcome == "refused"


def test_the_version_before_comes_back_whatever_stopped_a_pull_that_went_back(fleet: Fleet, tmp_path: Path) -> None:
    def pull_old(trial: Fleet) -> Pulled:
        return trial.device.pull(trial.place.root, check=lambda _: "bad")

    fleet.device.pull(fleet.place.root)
    fleet.place.publish(fleet.old)
    for trial in kills(fleet, tmp_path / "trials", pull_old):
        assert pull_old(trial).in_use == "2"
        assert contents(trial.device.bundle) == contents(trial.new)


def test_a_lost_state_loses_no_version(fleet: Fleet) -> None:
    fleet.device.pull(fleet.place.root)
    (versions(fleet.device).parent / "state.json").unlink()
    fleet.place.publish(fleet.old, version="3")
    assert fleet.device.pull(fleet.place.root, keep=3).in_use == "3"
    assert sorted(path.name[0] for path in versions(fleet.device).iterdir()) == ["1", "2", "3"]
    assert [roll_back(fleet.device.into, NAME).now for _ in range(2)] == ["2", "1"]


def test_a_dry_run_installs_nothing_of_what_is_in_use(fleet: Fleet) -> None:
    def interrupted(_: Path) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fleet.device.pull(fleet.place.root, check=interrupted)
    assert fleet.device.pull(fleet.place.root, check=lambda _: "bad", dry_run=True).outcome == "current"
    assert fleet.device.pull(fleet.place.root, check=lambda _: "bad").outcome == "rolled back"
