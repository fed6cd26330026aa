"""Words for numbers."""

from __future__ import annotations

import pytest

from centermask.wording import counted


@pytest.mark.parametrize(("number", "text"), [(0, "0 pictures"), (1, "1 picture"), (2, "2 pictures")])
def test_one_is_not_many(number: int, text: str) -> None:
    assert counted(number, "picture") == text
