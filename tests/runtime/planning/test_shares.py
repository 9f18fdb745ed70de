"""Who gives memory to whom, of bundles that share a budget."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from weightpager.runtime.planning.shares import WAKING, Holding, Wish, plan_ahead, plan_shares, spread

NAMES = ("a", "b", "c")


def held(
    share: int, *worths: float, spare: int = 0, page: int = 10, free: int = 0, uses: float | None = None
) -> Holding:
    return Holding(share, spare, page, free, np.array(worths, float), uses)


def test_what_nobody_has_goes_first_then_what_holds_no_page_then_the_pages_worth_least() -> None:
    holdings = {"a": held(100), "b": held(100, 0.1, 0.5, spare=5, free=1), "c": held(100, 0.3)}

    def shares(most: int) -> dict[str, int] | None:
        return plan_shares("a", Wish(100, most), holdings, 310)

    assert shares(110) == {"a": 110, "b": 100, "c": 100}
    assert shares(115) == {"a": 115, "b": 95, "c": 100}
    assert shares(125) == {"a": 125, "b": 85, "c": 100}
    assert shares(135) == {"a": 135, "b": 75, "c": 100}
    assert shares(145) == {"a": 145, "b": 75, "c": 90}


def test_its_own_page_goes_where_that_is_worth_least() -> None:
    holdings = {"a": held(100, 0.1), "b": held(100, 0.2)}
    assert plan_shares("a", Wish(100, 110), holdings, 200) == {"a": 100, "b": 100}
    assert plan_shares("a", Wish(110, 110), holdings, 200) == {"a": 110, "b": 90}, "its task can't do with less"


def test_what_can_not_be_had_is_refused() -> None:
    assert plan_shares("a", Wish(130, 140), {"a": held(100), "b": held(100, 0.2)}, 200) is None
    assert plan_shares("a", Wish(110, 140), {"a": held(100), "b": held(100, 0.2)}, 200) == {"a": 110, "b": 90}


def test_a_bundle_sleeps_where_pages_of_others_are_worth_more() -> None:
    holdings = {"a": held(0), "b": held(100, 0.5, 0.9), "c": held(100, 0.0, uses=0.0)}
    wish = Wish(60, 60)
    assert plan_shares("a", wish, holdings, 200) == {"a": 60, "b": 100, "c": 0}
    busy = holdings | {"c": held(100, 0.0)}
    assert plan_shares("a", wish, busy, 200) is None
    assert plan_shares("a", Wish(30, 30), busy, 200) == {"a": 30, "b": 80, "c": 90}


def test_no_bundle_sleeps_where_pages_that_go_are_enough() -> None:
    holdings = {"a": held(0), "b": held(100, 0.4), "c": held(100, 0.9), "d": held(100, uses=0.0)}
    assert plan_shares("a", Wish(20, 20), holdings, 300) == {"a": 20, "b": 90, "c": 90, "d": 100}
    assert plan_shares("a", Wish(30, 30), holdings, 300) == {"a": 30, "b": 100, "c": 100, "d": 0}


def test_waking_takes_longer_than_to_read_what_a_bundle_keeps() -> None:
    least = WAKING // 4
    pages = {"a": held(0), "b": held(100, 0.4, page=100), "c": held(least, uses=0.1)}
    assert plan_shares("a", Wish(100, 100), pages, least + 100) == {"a": 100, "b": 0, "c": least}


def test_pages_stay_where_a_bundle_that_sleeps_leaves_enough() -> None:
    holdings = {"a": held(0), "b": held(100, 0.1, 0.2), "c": held(100, uses=1e-9)}
    cheap = holdings | {"c": held(100, uses=0.3 / (1 + WAKING / 100))}
    for each in (holdings, cheap):
        assert plan_shares("a", Wish(90, 90), each, 200) == {"a": 90, "b": 100, "c": 0}


def test_pages_ahead_take_what_is_worth_less_and_no_more() -> None:
    holdings = {"a": held(100, 0.05), "b": held(100, 0.1, 0.4, spare=5, free=1), "c": held(100, 0.3, uses=0.0)}

    def ahead(*wanted: float, budget: int = 300) -> dict[str, int] | None:
        return plan_ahead("a", np.array(wanted), holdings, budget)

    assert ahead() is None
    assert ahead(0.01, budget=310) == {"a": 110, "b": 100, "c": 100}
    assert ahead(0.9) == {"a": 110, "b": 90, "c": 100}, "a free slot goes first, and rows stay"
    assert ahead(0.9, 0.104) == ahead(0.9), "a page must be worth 5 % more than what goes"
    assert ahead(0.9, 0.11) == {"a": 120, "b": 80, "c": 100}
    assert ahead(*[0.9] * 40) == {"a": 140, "b": 70, "c": 90}, "nobody sleeps for it, and its own page stays"


def test_what_is_left_goes_to_those_awake_who_can_use_it() -> None:
    assert spread({"a": 50, "b": 50, "c": 0}, {"a": 60, "b": 80, "c": 500}, 120) == {"a": 55, "b": 65, "c": 0}
    assert spread({"a": 50, "b": 50}, {"a": 60, "b": 40}, 1000) == {"a": 60, "b": 50}
    assert spread({"a": 50}, {"a": 60}, 50) == {"a": 50}


@st.composite
def _situations(draw: st.DrawFn) -> tuple[Wish, dict[str, Holding], int]:
    worths = st.lists(st.floats(0, 2), max_size=6).map(sorted)
    holdings = {}
    for name in NAMES[: draw(st.integers(1, 3))]:
        pages, free, page = draw(worths), draw(st.integers(0, 3)), draw(st.sampled_from([4, 16, 64]))
        spare = draw(st.integers(0, 50))
        fixed = draw(st.integers(1, 200))
        share = fixed + spare + (len(pages) + free) * page
        uses = draw(st.none() | st.floats(0, 4))
        holdings[name] = held(share, *pages, spare=spare, page=page, free=free, uses=uses)
    least = draw(st.integers(1, 500))
    wish = Wish(least, least + draw(st.integers(0, 300)))
    return wish, holdings, sum(each.share for each in holdings.values()) + draw(st.integers(0, 200))


@given(_situations())
def test_shares_stay_within_the_budget_and_nobody_gives_what_it_can_not(
    situation: tuple[Wish, dict[str, Holding], int],
) -> None:
    wish, holdings, budget = situation
    shares = plan_shares("a", wish, holdings, budget)
    others = [name for name in holdings if name != "a"]

    stay = [holdings[name].least for name in others if holdings[name].uses is None]
    if shares is None:
        assert wish.least > budget - sum(stay)
        return
    assert sum(shares.values()) <= budget
    assert shares["a"] >= max(wish.least, holdings["a"].share)
    for name in others:
        asleep = shares[name] == 0 and holdings[name].uses is not None
        assert asleep or holdings[name].least <= shares[name] <= holdings[name].share


@pytest.mark.parametrize("worth", [0.0, 1.0])
def test_pages_of_equal_worth_go_in_the_order_of_the_bundles(worth: float) -> None:
    holdings = {"a": held(100), "b": held(100, worth), "c": held(100, worth)}
    assert plan_shares("a", Wish(110, 110), holdings, 300) == {"a": 110, "b": 90, "c": 100}
