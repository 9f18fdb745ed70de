from __future__ import annotations

from weightpager_lab.samples.corpora import families

ANSWER = "thanks but one two three four five six seven eight nine ten eleven twelve is wrong"
QUESTION = "One two, three four five six seven eight nine ten eleven twelve?"
STRANGER = "nothing of it occurs in here"


def test_a_shared_run_makes_relatives() -> None:
    question, answer, stranger = families([QUESTION, ANSWER, STRANGER])
    assert question == answer == min(QUESTION, ANSWER)
    assert stranger == STRANGER


def test_a_shorter_run_does_not() -> None:
    assert len(set(families([QUESTION, ANSWER], run=13))) == 2


def test_relatives_of_relatives() -> None:
    words = [str(number) for number in range(30)]
    first, middle, last = " ".join(words[:14]), " ".join(words[2:26]), " ".join(words[14:])
    assert len(set(families([first, last, middle]))) == 1


def test_a_formula_makes_no_relatives() -> None:
    letters = [f"letter {number}: {QUESTION}" for number in range(5)]
    assert len(set(families(letters, common=5))) == 1
    assert len(set(families(letters, common=4))) == 5


def test_a_thread_is_one_family_however_long() -> None:
    letters = [f"letter {number}" for number in range(50)]
    assert len(set(families(letters, threads=["lunch"] * 49 + [""], common=2))) == 2


def test_the_name_does_not_depend_on_the_order() -> None:
    assert families([ANSWER, QUESTION]) == families([QUESTION, ANSWER])
