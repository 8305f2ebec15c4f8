"""Near-duplicate search: recall and precision on planted rows, speed and memory against datasketch.

    python -m benchmarks.near_duplicates quality ROWS          a file with real rows
    python -m benchmarks.near_duplicates speed ROWS 10000      ours and datasketch (pip install it) in turn
    python -m benchmarks.near_duplicates pipeline ROWS 1000000 all of `finetune data prepare`

Larger numbers of rows are made from the real ones: sentences drawn at random, a third of their words replaced by others
of the file, so that no two rows are alike; then one in fifty is a near duplicate of the row before.
"""

import argparse
import json
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from finetune.config.data import DataSection
from finetune.data.duplicates.content_keys import content_key, message_text
from finetune.data.duplicates.duplicates import Duplicates
from finetune.data.duplicates.grams import CommonText
from finetune.data.prepare import prepare
from gladstone.chat.messages import Conversation, Message
from gladstone.commands.progress import Lines
from gladstone.formats import find_layout, iter_conversations
from gladstone.rows import Problems
from tests.finetune.planted import EDITS, plant

SIMILARITY = 0.8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("quality", "speed", "pipeline", "ours", "datasketch"))
    parser.add_argument("rows", type=Path)
    parser.add_argument("count", type=int, nargs="?", default=10_000)
    arguments = parser.parse_args()
    if arguments.what == "quality":
        quality(read(arguments.rows))
    elif arguments.what == "speed":
        speed(arguments.rows, arguments.count)
    elif arguments.what == "pipeline":
        pipeline(arguments.rows, arguments.count)
    else:
        rows = list(made(arguments.rows, arguments.count))
        before, begin_s = peak_bytes(), time.monotonic()
        pairs = (ours if arguments.what == "ours" else datasketch)(rows)
        print(json.dumps({"s": time.monotonic() - begin_s, "bytes": peak_bytes() - before, "pairs": pairs}))


def quality(rows: list[Conversation]) -> None:
    """For each kind of edit: how many planted rows are found, and how many finds are planted rows."""
    natural = Duplicates(rows, SIMILARITY)
    natural.find()
    distinct = [row for number, row in enumerate(rows) if number not in natural.partners]
    print(f"{len(rows):,} rows, {len(natural.partners):,} of them near duplicates; one planted for each other")
    for name, edit in EDITS.items():
        planted = plant(distinct, edit)
        duplicates = Duplicates([*distinct, *planted], SIMILARITY)
        duplicates.find()
        hits = sum(
            duplicates.partners.get(len(distinct) + number, (-1,))[0] == number for number in range(len(planted))
        )
        precision = hits / max(1, len(duplicates.partners))
        print(f"  {name:14} recall {hits / len(planted):.3f}  precision {precision:.3f}")


def speed(path: Path, count: int) -> None:
    """Ours and datasketch in turn, three times."""
    ratios = []
    for _ in range(3):
        told = {}
        for name in ("ours", "datasketch"):
            command = [sys.executable, "-m", "benchmarks.near_duplicates", name, str(path), str(count)]
            told[name] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
            each = told[name]
            print(
                f"  {name:10} {count / each['s']:8,.0f} rows/s  {each['bytes'] >> 20:6,} MiB  {each['pairs']:,} pairs"
            )
        ratios.append(told["datasketch"]["s"] / told["ours"]["s"])
    print(f"{sorted(ratios)[1]:.1f} times as fast (median of {', '.join(f'{ratio:.1f}' for ratio in ratios)})")


def ours(rows: list[Conversation]) -> int:
    duplicates = Duplicates(rows, SIMILARITY)
    duplicates.find()
    return len(duplicates.partners)


def datasketch(rows: list[Conversation]) -> int:
    """The usual way: 128 permutations, candidates by LSH, no check of the pair."""
    from datasketch import MinHash, MinHashLSH

    lsh = MinHashLSH(threshold=SIMILARITY, num_perm=128)
    found = 0
    common = CommonText()  # counts nothing: no text is common
    for number, row in enumerate(rows):
        sketch = MinHash(num_perm=128)
        turns = [content_key(message_text(message)) for message in row.messages]
        grams = {int(gram) for gram in common.grams([turns])[0]}
        sketch.update_batch([gram.to_bytes(8, "little") for gram in grams])
        found += bool(lsh.query(sketch))
        lsh.insert(str(number), sketch)
    return found


def pipeline(path: Path, count: int) -> None:
    """All of `prepare` on a file of that many rows; time and peak memory."""
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "rows.jsonl"
        with data.open("w", encoding="utf-8") as file:
            for row in made(path, count):
                question, answer = (message.content for message in row.messages)
                file.write(json.dumps({"question": question, "answer": answer}) + "\n")
        before, begin_s = peak_bytes(), time.monotonic()
        section = DataSection.model_validate({"sources": [{"path": str(data)}]})
        summary = prepare(section, Path(folder) / "sets", Lines())
        elapsed_s = time.monotonic() - begin_s
        size = data.stat().st_size
    print(f"{count:,} rows, {size >> 20:,} MiB: {elapsed_s:.0f} s, {count / elapsed_s:,.0f} rows/s")
    print(f"peak memory {peak_bytes() >> 20:,} MiB, {before >> 20:,} MiB of it before")
    print(f"left out {dict(summary.dropped)}")


def read(path: Path) -> list[Conversation]:
    return list(iter_conversations(path, find_layout(path, "auto"), Problems()))


def made(path: Path, count: int) -> Iterator[Conversation]:
    """That many rows made from a file's."""
    draw = random.Random(0)
    rows = read(path)
    questions = [row.messages[-2].content for row in rows]
    sentences = [part for row in rows for part in re.split(r"(?<=[.!?])\s+", row.answer.content) if len(part) > 20]
    words = [word for sentence in sentences for word in sentence.split()]
    row = rows[0]

    def changed(text: str) -> str:
        return " ".join(draw.choice(words) if draw.random() < 1 / 3 else word for word in text.split())

    for number in range(count):
        if number % 50 == 49:
            row = plant([row], EDITS["case"], number)[0]
        else:
            answer = " ".join(changed(draw.choice(sentences)) for _ in range(draw.randint(2, 6)))
            question = changed(draw.choice(questions))
            row = Conversation((Message("user", question), Message("assistant", answer)), f"made:{number + 1}")
        yield row


def peak_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) * 1024  # type: ignore[index]


if __name__ == "__main__":
    main()
