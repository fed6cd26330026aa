"""Compares two JSON files of one benchmark, and fails where something of ours has become slower.

    python benchmarks/compare.py OLD.json NEW.json [--tolerance 0.1] [--absolute]

Peers that both files have say how fast the machine was: each of our times is divided by theirs (geometric mean over all
cases), so that files of different days, or of machines with other work, can be compared. `--absolute` leaves that out.
Exit code 1 if a ratio exceeds 1 + tolerance, 2 if the files have nothing in common.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import interleaved

Times = dict[tuple[str, str], float]


def times_of(result: dict[str, Any]) -> Times:
    return {(row["case"], name): ms for row in result["rows"] for name, ms in row["milliseconds"].items()}


def ratios_of(old: Times, new: Times, absolute: bool) -> tuple[dict[tuple[str, str], float], float]:
    """New over old for what is ours, and what the machine has become slower by."""
    both = [key for key in old if key in new]
    peers = [new[key] / old[key] for key in both if key[1] not in interleaved.OURS]
    drift = 1.0 if absolute or not peers else interleaved.geometric_mean(peers)
    return {key: new[key] / old[key] / drift for key in both if key[1] in interleaved.OURS}, drift


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--tolerance", type=float, default=0.1)
    parser.add_argument("--absolute", action="store_true", help="do not take the peers for a clock")
    arguments = parser.parse_args()
    old, new = (json.loads(path.read_text()) for path in (arguments.old, arguments.new))
    for key in ("benchmark", "threads", "isa"):
        if old[key] != new[key]:
            print(f"not comparable: {key} is {old[key]!r} and {new[key]!r}")
            return 2
    if old["processor"] != new["processor"]:
        print(f"note: measured on {old['processor']} and on {new['processor']}")
    ratios, drift = ratios_of(times_of(old), times_of(new), arguments.absolute)
    if not ratios:
        print("the files have no case of ours in common")
        return 2
    print(f"the peers take {drift:.3f} of their old time; of ours, after division by that:")
    worse = 0
    for (case, name), ratio in ratios.items():
        slower = ratio > 1 + arguments.tolerance
        worse += slower
        print(f"{ratio:7.3f}  {case}: {name}{'  SLOWER' if slower else ''}")
    print(f"geometric mean {interleaved.geometric_mean(ratios.values()):.3f}; {worse} slower than allowed")
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())
