"""Measure how many planted leaks of each kind `finetune data leaks` finds among real rows, and how fast.

    python -m benchmarks.leaks ROWS [PLANTED]     a file with real rows; how many leaks of each kind

Every other row is a test row; PLANTED rows of each kind are made from test rows and put among the others.
"""

import argparse
import random
import time
from pathlib import Path

from finetune.data.duplicates.duplicates import Duplicates
from finetune.data.leaks.leaks import LeakIndex
from gladstone.formats import find_layout, iter_conversations
from gladstone.rows import Problems
from tests.finetune.planted import DECOYS, LEAKS, plant_leaks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=Path)
    parser.add_argument("planted", type=int, nargs="?", default=100)
    parser.add_argument("--show", action="store_true", help="show what is missed")
    arguments = parser.parse_args()
    path = arguments.rows
    rows = list(iter_conversations(path, find_layout(path, "auto"), Problems()))
    duplicates = Duplicates(rows, 0.8)
    duplicates.find()
    groups = duplicates.split_groups()
    roots = sorted({groups.root(row) for row in range(len(rows))})
    random.Random(1).shuffle(roots)
    chosen = set(roots[: len(roots) // 2])
    test = [row for number, row in enumerate(rows) if groups.root(number) in chosen]
    train = [row for number, row in enumerate(rows) if groups.root(number) not in chosen]
    planted = {name: plant_leaks(test, name, arguments.planted) for name in (*LEAKS, *DECOYS)}
    everything = [*train, *(row for made in planted.values() for row in made)]
    begin_s = time.monotonic()
    index = LeakIndex(test, 0.6)
    built_s = time.monotonic() - begin_s
    found = dict(index.leaks(everything))
    elapsed_s = time.monotonic() - begin_s
    natural = [leak for row, leak in found.items() if row < len(train)]
    print(f"{len(train):,} training rows against {len(test):,} test rows; {len(natural)} of them resemble one")
    place = len(train)
    print(f"  {'kind':14} {'planted':>8} {'found':>6} {'share':>6}")
    for name, made in planted.items():
        hits = [found[place + number] for number in range(len(made)) if place + number in found]
        if name in DECOYS:  # made from one test row, a decoy may ask another one's question: that is a leak
            hits = [leak for leak in hits if leak.train.removesuffix(" planted") == leak.test]
        print(f"  {name:14} {len(made):8} {len(hits):6} {len(hits) / max(1, len(made)):6.1%}")
        if arguments.show:
            wrong = [number for number in range(len(made)) if (place + number in found) == (name in DECOYS)]
            for number in wrong[:6]:
                print(
                    "     ",
                    [message.content[-150:] for message in made[number].messages][-2:],
                    found.get(place + number),
                )
        place += len(made)
    total = len(everything) + len(test)
    print(f"{elapsed_s:.2f} s, {total / elapsed_s:,.0f} rows/s; building the index took {built_s:.2f} s of it")
    if arguments.show:
        for leak in natural[:25]:
            print("  ", leak)


if __name__ == "__main__":
    main()
