"""Words for numbers."""

from __future__ import annotations


def counted(number: int, noun: str) -> str:
    """`1 picture`, `2 pictures`; nouns whose plural is made with an s."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
