"""What a program left behind, made fit for a reply."""

from __future__ import annotations

import os

from hypothesis import given
from hypothesis import strategies as st

from sandfork.engine.collected import MAX_SKIPPED, presentable
from sandfork.model import OutputFile
from sandfork.tiers.base import Collected

NAMES = st.binary(min_size=1, max_size=20).map(os.fsdecode)


def test_a_name_that_is_no_text_is_skipped_and_shown_with_what_is_wrong_replaced() -> None:
    odd = os.fsdecode(b"a\xff.txt")
    made = presentable(Collected((OutputFile("ä.txt", b"1"), OutputFile(odd, b"2")), ("link",)))
    assert made == Collected((OutputFile("ä.txt", b"1"),), ("a\ufffd.txt", "link"))


def test_a_thousand_skipped_names_are_given_and_the_rest_counted() -> None:
    names = tuple(f"f{number}" for number in range(MAX_SKIPPED + 7))
    assert presentable(Collected(skipped=names)).skipped == (*names[:MAX_SKIPPED], "and 7 more")
    assert presentable(Collected(skipped=names[:MAX_SKIPPED])).skipped == names[:MAX_SKIPPED]


@given(st.lists(NAMES, max_size=5), st.lists(NAMES | st.text(max_size=5), max_size=5))
def test_whatever_the_names_a_reply_can_carry_them_and_none_is_lost(files: list[str], skipped: list[str]) -> None:
    made = presentable(Collected(tuple(OutputFile(name, b"") for name in files), tuple(skipped)))
    for name in (*(file.path for file in made.files), *made.skipped):
        name.encode()
    assert len(made.files) + len(made.skipped) == len(files) + len(skipped)
