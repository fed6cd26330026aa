"""The classes of a split: names and ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from centermask.training.layouts import Split
from centermask.validate.findings import Findings


def check_categories(rows: Sequence[Any], split: Split, findings: Findings) -> dict[int, str]:
    """Category id -> name, as training reads them; what is wrong with them is noted.

    Args:
        rows: `categories` of the file.
        split: Where they are from.
        findings: Grows.
    """
    names: dict[int, str] = {}
    for row in rows:
        if not isinstance(row, dict) or not isinstance(row.get("id"), int):
            findings.add("category-broken", split.name, split.path, f"a category needs an integer id, got {row!r:.80}")
            continue
        key, name = row["id"], row.get("name")
        if key in names:
            findings.add("category-broken", split.name, split.path, f"category id {key} is given twice")
            continue
        if not isinstance(name, str) or not name.strip():
            name = f"category {key}"
            findings.add("category-unnamed", split.name, split.path, f"category {key} has no name; called {name!r}")
        if name.strip() in names.values():
            findings.add("category-name", split.name, split.path, f"category {name!r} is given twice; taken as one")
        names[key] = name.strip()
    if not names:
        findings.add("category-broken", split.name, split.path, "it has no categories")
    missing = sorted(set(range(min(names, default=1), max(names, default=0) + 1)) - names.keys())
    if missing:
        listed = ", ".join(map(str, missing[:8])) + (" ..." if len(missing) > 8 else "")
        findings.add("category-gaps", split.name, split.path, f"category ids skip {listed}")
    return names
