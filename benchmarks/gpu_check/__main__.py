"""What only a GPU can show: each family of models trained and exported on it, in ten minutes, without a network.

    python -m benchmarks.gpu_check [--minutes 10] [--families mistral t5] [--only gradient export]
    python -m benchmarks.gpu_check --tiny        # on the processor: whether the checks themselves work

Random weights of real width and vocabulary, four layers each. Our own functions run in one process; plain transformers
with PEFT and bitsandbytes, in another, are the reference. Prints one table and one line of JSON. A check that cannot be
made says why and does not count as passed; a failing one does not end the others. Exits with 1 if a check failed or
none passed. docs/training.md says what the table means and what to install.
"""

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from benchmarks.gpu_check.checks import CHECKS, Case, Check
from benchmarks.gpu_check.families import FAMILIES, Family
from benchmarks.gpu_check.results import CannotRunError, Result, counts, heading, json_line, row
from benchmarks.gpu_check.side import FailedError, Side

ORDER_S = 240.0  # the longest that one order may take
LEAST_S = 1.0
NO_TIME = "no time left: raise --minutes, or take a part with --families and --only"
MODULES = {"ours": "benchmarks.gpu_check.ours", "plain": "benchmarks.gpu_check.plain"}


class Budget:
    """The time of the whole run."""

    def __init__(self, minutes: float) -> None:
        self._begin_s, self._limit_s = time.monotonic(), minutes * 60

    @property
    def spent_s(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self._begin_s

    def left_s(self) -> float:
        """Seconds for the next order."""
        return min(ORDER_S, self._limit_s - self.spent_s)


def precisions(family: Family, device: dict[str, Any]) -> list[tuple[str, str]]:
    """The precisions of a family, the first for all checks; the second value is why one cannot be taken, or ''."""
    if family.encodes:
        return [("fp32", "")]
    if device["bf16"]:
        return [("bf16", ""), ("fp16", "")]
    return [("fp16", ""), ("bf16", f"{device['name']} has no bfloat16")]


def does_not_apply(check: Check, family: Family) -> str:
    """Why a check is not made for a family, '' if it is."""
    if check.name == "nf4" and not family.four_bit:
        return "encoder–decoder models are trained in float32" if family.encodes else "trained in 16 bit"
    return ""


def make(check: Check, case: Case, why_not: str) -> Result:
    """Make one check, whatever becomes of it."""
    begin_s = time.monotonic()
    ok: bool | None = None
    figures: dict[str, Any] = {}
    try:
        if why_not:
            raise CannotRunError(why_not)
        if case.left_s() < LEAST_S:
            raise CannotRunError(NO_TIME)
        found = check.find(case)
        ok, got, figures = found.ok, found.got, found.figures
    except CannotRunError as reason:
        got = str(reason)
    except FailedError as error:
        ok, got = (False, str(error)) if case.left_s() >= LEAST_S else (None, "the time was up before it ended")
    return Result(check.name, case.name, case.precision, check.wanted, got, ok, time.monotonic() - begin_s, figures)


@contextmanager
def sides(name: str, folder: Path, *, tiny: bool) -> Iterator[dict[str, Side]]:
    """Our side of a family by precision, and the other one as 'plain'; each process starts when it is first asked."""
    settings = {"family": name, "folder": str(folder), "tiny": tiny}
    made = {
        precision: Side(MODULES["ours"], settings | {"precision": precision}, folder / f"{precision}.log")
        for precision in ("bf16", "fp16", "fp32")
    }
    made["plain"] = Side(MODULES["plain"], settings, folder / "plain.log")
    try:
        yield made
    finally:
        for side in made.values():
            side.close()


class Session:
    """All checks, one family after the other; each result is printed as it comes."""

    def __init__(self, folder: Path, chosen: Sequence[Check], budget: Budget, *, tiny: bool, keeps: bool) -> None:
        """`keeps`: what a family leaves in `folder` stays."""
        self._folder, self._chosen, self._budget, self._tiny, self._keeps = folder, chosen, budget, tiny, keeps
        self.results: list[Result] = []
        self.device: dict[str, Any] = {}

    def check(self, name: str) -> None:
        """Make the chosen checks of a family. Raises CannotRunError without a GPU, unless its shapes are tiny."""
        folder, family = self._folder / name, FAMILIES[name]
        folder.mkdir(parents=True)
        with sides(name, folder, tiny=self._tiny) as made:
            self._describe(made["plain"])
            without = self._write(made["plain"])
            for index, (precision, why_not) in enumerate(precisions(family, self.device)):
                layers = 7 * int(family.chosen(tiny=self._tiny).get("num_hidden_layers", 0))
                gpu, left_s = bool(self.device["gpu"]), self._budget.left_s
                case = Case(name, precision, made[precision], made["plain"], gpu, layers, left_s)
                for check in self._chosen:
                    if index == 0 or check.both:
                        self._add(make(check, case, without or why_not or does_not_apply(check, family)))
                made[precision].close()
        if not self._keeps:  # a notebook has little disk
            shutil.rmtree(folder)

    def _describe(self, plain: Side) -> None:
        if not self.device:
            self.device = plain.ask("describe", ORDER_S)
            print(f"{self.device['name']}, {describe_versions(self.device)}\n\n{heading()}", flush=True)

    def _write(self, plain: Side) -> str:
        """Write the base; return why it cannot be checked, '' if it can."""
        if self._budget.left_s() < LEAST_S:
            return NO_TIME
        try:
            plain.ask("write", self._budget.left_s())
        except FailedError as error:
            return f"the base was not written: {error}"
        return ""

    def _add(self, result: Result) -> None:
        self.results.append(result)
        print(row(result), flush=True)

    def close(self) -> int:
        """Print the sums and the line of JSON; return the exit code."""
        said = counts(self.results)
        sums = f"{said['passed']} passed, {said['failed']} failed, {said['not_run']} not run"
        print(f"\n{sums}, {self._budget.spent_s:.0f} s")
        print(json_line(self.results, self.device, self._budget.spent_s, tiny=self._tiny), flush=True)
        return 0 if said["passed"] and not said["failed"] else 1


def describe_versions(device: dict[str, Any]) -> str:
    """The versions in one line."""
    installed = {"Python": device["python"], "CUDA": device["cuda"], **device["versions"]}
    return ", ".join(f"{name} {version or 'none'}" for name, version in installed.items())


def main() -> None:
    """Parse, check, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [check.name for check in CHECKS]
    parser.add_argument("--minutes", type=float, default=10.0, help="time for everything (default 10)")
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES), help="(default all)")
    parser.add_argument("--only", nargs="+", choices=names, default=names, help="checks (default all)")
    parser.add_argument("--tiny", action="store_true", help="small shapes, which need no GPU: try the checks")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="a new folder for bases, runs and logs, which stay")
    options = parser.parse_args()
    with ExitStack() as stack:
        if options.keep and options.keep.exists():
            parser.error(f"--keep {options.keep}: exists already")
        folder = options.keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gladstone-gpu-check-")))
        chosen = [check for check in CHECKS if check.name in options.only]
        budget, keeps = Budget(options.minutes), options.keep is not None
        session = Session(folder.resolve(), chosen, budget, tiny=options.tiny, keeps=keeps)
        try:
            for name in dict.fromkeys(options.families):
                session.check(name)
        except CannotRunError as reason:
            sys.exit(str(reason))
        except KeyboardInterrupt:
            session.close()
            sys.exit(130)
        sys.exit(session.close())


if __name__ == "__main__":
    main()
