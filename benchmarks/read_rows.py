"""Rows per second and peak memory of reading a data file, at 10,000 and 1,000,000 rows, beside `datasets`.

    python benchmarks/read_rows.py [--rows 10000 --rows 1000000]

Each reader runs in its own process. Gladstone checks every row and its text; `datasets` reads into Arrow and returns
rows.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

OURS = """
import sys, time
from pathlib import Path
begin = time.monotonic()
from finetune.reports.data_check import check_rows
rows = check_rows(Path(sys.argv[1]), "auto").rows
"""
DATASETS = """
import sys, time
begin = time.monotonic()
from datasets import load_dataset
loaded = load_dataset("json", data_files=sys.argv[1], split="train", cache_dir=sys.argv[2])
rows = sum(1 for _ in loaded)
"""
TAIL = """
import json
peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps({"rows": rows, "s": time.monotonic() - begin, "peak_mb": peak / 1024}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, action="append")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for count in parser.parse_args().rows or [10_000, 1_000_000]:
            for ending, write in (("jsonl", _write_lines), ("json", _write_array)):
                path = folder / f"{count}.{ending}"
                write(path, count)
                _show(f"gladstone {ending:5}", count, path, OURS, folder)
                if ending == "jsonl":
                    _show("datasets  jsonl", count, path, DATASETS, folder)
                path.unlink()


def _row(number: int) -> str:
    question = f"What does finding {number} mean in a patient of {number % 90} years?"
    return json.dumps({"question": question, "answer": f"It is seen in {number * 7919 % 1013} of 1,013 patients. " * 6})


def _write_lines(path: Path, count: int) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(_row(number) + "\n" for number in range(count))


def _write_array(path: Path, count: int) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write("[")
        file.writelines(("" if number == 0 else ", ") + _row(number) for number in range(count))
        file.write("]")


def _show(name: str, count: int, path: Path, code: str, folder: Path) -> None:
    command = [sys.executable, "-c", code + TAIL, str(path), str(folder / "cache")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["rows"] == count
    print(
        f"{name}  {count:>9,} rows  {told['rows'] / told['s']:>9,.0f} rows/s  peak {told['peak_mb']:,.0f} MB",
        flush=True,
    )


if __name__ == "__main__":
    main()
