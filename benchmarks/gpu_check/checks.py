"""The checks: what is asked of the two sides, what is wanted, and whether what they answer is that."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from benchmarks.gpu_check.results import CannotRunError
from benchmarks.gpu_check.side import Side

STEPS, TURNS, TURN_STEPS = 10, 3, 6
LOSS_SHARE, COSINE, MOST_SKIPPED = 0.01, 0.999, 3
SAME_COSINE, SAME_SHARE, NEXT_PEAK = 0.9999, 0.02, 1.05
NOISE = 1.01  # of a peak
SAVED = 0.9  # of the memory without checkpointing that it leaves at most
RESUMED_SHARE = 1e-3
ESTIMATED = (0.8, 1.25)
RACE_SPEED, RACE_MEMORY = 0.9, 1.1  # not slower and no more memory, up to the noise of a machine


@dataclass
class Case:
    """A family in one precision: its two sides, and how long they may take.

    `layers` is the number of its linear layers; `race` holds what a race measured, for the second check that reads it.
    """

    name: str
    precision: str
    ours: Side
    plain: Side
    on_gpu: bool
    layers: int
    left_s: Callable[[], float]
    race: dict[str, Any] = field(default_factory=dict)

    def ask(self, order: str, **arguments: Any) -> dict[str, Any]:
        """Ask our side."""
        return self.ours.ask(order, self.left_s(), **arguments)

    def ask_plain(self, order: str, **arguments: Any) -> dict[str, Any]:
        """Ask the other side."""
        return self.plain.ask(order, self.left_s(), **arguments)


@dataclass(frozen=True)
class Found:
    """What a check found, in words and figures."""

    ok: bool
    got: str
    figures: dict[str, Any]


@dataclass(frozen=True)
class Check:
    """A check: what it wants, and how it finds out; `both` if it is made in every precision."""

    name: str
    wanted: str
    find: Callable[[Case], Found]
    both: bool = False


def nf4(case: Case) -> Found:
    said = case.ask("nf4")
    counts = [said[when]["nf4"] for when in ("before", "after")]
    others = [said[when]["other"] for when in ("before", "after")]
    got = f"{counts[0]} and {counts[1]} of {case.layers} layers, {others[1]} others"
    return Found(counts == [case.layers] * 2 and others == [0, 0], got, said)


def gradient(case: Case) -> Found:
    said = case.ask("gradient")
    plain = case.ask_plain("gradient", adapter=said["adapter"], gradient=said["gradient"])
    share = abs(said["loss"] / plain["loss"] - 1)
    ok = share <= LOSS_SHARE and plain["cosine"] > COSINE
    got = f"{said['dtype']}: {said['loss']:.4f}, plain {plain['loss']:.4f} ({share:.3%}), cosine {plain['cosine']:.6f}"
    return Found(ok, got, {"ours": said, "plain": plain})


def steps(case: Case) -> Found:
    said = case.ask("steps")
    plain = case.ask_plain("steps", adapter=said["adapter"], count=STEPS)["losses"]
    losses, updates = said["losses"], said["updates"]
    apart = max(abs(loss / plain[made] - 1) for loss, made in zip(losses, updates, strict=True))
    ok = len(losses) == STEPS and said["skipped"] <= MOST_SKIPPED and apart <= LOSS_SHARE and losses[-1] < losses[0]
    got = f"{said['skipped']} skipped, {losses[0]:.3f} → {losses[-1]:.3f}, {apart:.3%} from plain at most"
    return Found(ok, got, said | {"plain": plain})


def checkpointing(case: Case) -> Found:
    said = case.ask("checkpointing")
    peaks, differences = said["peaks"], said["differences"]
    same = all(each["cosine"] > SAME_COSINE and each["difference"] < SAME_SHARE for each in differences.values())
    # on the processor saved tensors are counted, wherever they lie
    least = peaks[list(peaks)[-1] if case.on_gpu else "standard"]
    lowest = least <= SAVED * peaks["off"] and least <= NOISE * min(peaks.values())
    worst = max(each["difference"] for each in differences.values())
    sizes = ", ".join(f"{way} {peak / 1e6:.1f} MB" for way, peak in peaks.items())
    return Found(same and lowest, f"{sizes}; gradients {worst:.2%} apart", said)


def sampling(case: Case) -> Found:
    said = case.ask("sampling")
    grown = said["peaks"][1] / said["peaks"][0]
    same = said["cosine"] > SAME_COSINE and said["difference"] < SAME_SHARE
    got = f"{len(said['flags'])} flags, memory ×{grown:.2f}, gradient {said['difference']:.2%} apart"
    if said["flags"]:
        got += f": {said['flags'][0]}"
    return Found(not said["flags"] and 1 / NEXT_PEAK <= grown <= NEXT_PEAK and same, got, said)


def out_of_memory(case: Case) -> Found:
    said = case.ask("out_of_memory")
    ok = said["redone"] >= 1 and said["cosine"] > SAME_COSINE and said["difference"] < SAME_SHARE
    got = f"redone {said['redone']} times, gradient {said['difference']:.2%} apart"
    return Found(ok, got + ("" if case.on_gpu else "; the error was raised by the check"), said)


def resume(case: Case) -> Found:
    said = case.ask("resume")
    whole, resumed = said["losses"]
    if len(whole) != STEPS or len(resumed) != STEPS or not said["stopped"]:
        return Found(False, f"{len(whole)} and {len(resumed)} steps, stopped: {said['stopped'] or 'no'}", said)
    apart = max(abs(after / before - 1) for before, after in zip(whole, resumed, strict=True))
    return Found(apart <= RESUMED_SHARE, f"losses {apart:.1e} apart, adapters {said['adapters']:.1e}", said)


def estimate(case: Case) -> Found:
    said = case.ask("estimate")
    ratios = {way: expected / measured for way, (expected, measured) in said["bytes"].items()}
    got = ", ".join(
        f"{way} {ratio:.2f} ({said['bytes'][way][0] / 1e9:.2f} of {said['bytes'][way][1] / 1e9:.2f} GB)"
        for way, ratio in ratios.items()
    )
    return Found(all(ESTIMATED[0] <= ratio <= ESTIMATED[1] for ratio in ratios.values()), got, said)


def raced(case: Case) -> dict[str, Any]:
    """Both sides in turns, the first of which warms them up; measured once."""
    if not case.race:
        adapter = case.ask("save")["adapter"]
        asked = {"adapter": adapter, "precision": case.precision, "count": TURN_STEPS}
        turns = [(case.ask("turn"), case.ask_plain("turn", **asked)) for _ in range(TURNS + 1)][1:]
        speeds = [[turn["tokens"] / statistics.median(turn["seconds"]) for turn in pair] for pair in turns]
        case.race |= {
            "speeds": speeds,
            "peaks": [max(turn["peak"] for turn in side) for side in zip(*turns, strict=True)],
        }
    return case.race


def speed(case: Case) -> Found:
    said = raced(case)
    ratio = statistics.median(ours / plain for ours, plain in said["speeds"])
    ours, plain = (statistics.median(speeds) for speeds in zip(*said["speeds"], strict=True))
    got = f"×{ratio:.2f} ({ours:,.0f} and {plain:,.0f} tokens/s)"
    if not case.on_gpu:
        raise CannotRunError(f"needs a GPU: on the processor kernels are interpreted ({got})")
    return Found(ratio >= RACE_SPEED, got, said)


def vram(case: Case) -> Found:
    ours, plain = raced(case)["peaks"]
    got = f"×{ours / plain:.2f} ({ours / 1e9:.2f} and {plain / 1e9:.2f} GB)"
    if not case.on_gpu:
        raise CannotRunError("needs a GPU: the processor has no memory of its own to count")
    return Found(ours <= RACE_MEMORY * plain, got, {"peaks": [ours, plain]})


def export(case: Case) -> Found:
    said = case.ask("export")
    failed = [name for name, passed in said["checks"].items() if not passed]
    got = f"{len(said['checks']) - len(failed)} of {len(said['checks'])} checks"
    return Found(bool(said["checks"]) and not failed, f"{got}{': ' + ', '.join(failed) if failed else ''}", said)


CHECKS = (
    Check("nf4", "every linear layer NF4, before and after a step", nf4),
    Check("gradient", "loss within 1 % of plain in float32, cosine > 0.999", gradient, both=True),
    Check("steps", "ten: at most 3 skipped, losses fall, within 1 % of plain in float32", steps, both=True),
    Check("checkpointing", "equal gradients, the last way takes least", checkpointing),
    Check("sampling", "no flag left, next step's memory and gradient the same", sampling),
    Check("out-of-memory", "redone, equal gradient", out_of_memory),
    Check("resume", "losses within 1e-3 of the unbroken run", resume),
    Check("estimate", "0.8 to 1.25 of what torch allocated", estimate),
    Check("speed", "not slower than plain transformers + PEFT (median ≥ 0.9)", speed),
    Check("vram", "no more than plain transformers + PEFT (≤ 1.1)", vram),
    Check("export", "every check of the proof passed", export),
)
