"""The runtime against llama.cpp's own programs of the same version, with the same threads, in turns.

    python -m benchmarks.runtime_speed --peers FOLDER [--model FILE.gguf | --shape 1b] [--rounds 3] [--only SECTION …]

FOLDER holds llama-bench, llama-completion and llama-server. Every figure is a median of rounds; each side of a round
is a process of its own, so that neither has the other's memory or caches. A ratio above 1 is in our favour, but where
it is one of seconds or bytes. Nothing else should run beside it.
"""

import argparse
import concurrent.futures
import contextlib
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

from benchmarks.random_models import SHAPES, write_random_model
from benchmarks.runtime_ours import SAMPLINGS, STORY, text
from benchmarks.slices import in_slices
from gladstone.models.embedded_model import embedded_gguf
from runtime.text.detokenizer import Detokenizer

QUESTIONS = (
    "What is anaemia?", "Name the bones of the arm.", "How does insulin act?", "Explain fever to a child.",
    "What is a placebo?", "Why do we sleep?", "Describe the heart.", "What does the liver do?",
    "What is asthma?", "Name five vitamins.", "How do vaccines work?", "What is a stroke?",
    "Describe the knee.", "What is an allergy?", "How do kidneys work?", "What is gout?",
)  # fmt: skip
TOGETHER_TOKENS = 64
PORT = 18_431
SLICED_RUNS = 4  # pairs for each round
STORY_TOKENS = 51  # of the prompt that our side answers: attention costs the more the deeper it is


class Bench:
    """One model, the peers' folder, and how often each side is measured."""

    def __init__(self, model: Path, peers: Path, threads: int, rounds: int) -> None:
        self.model, self.peers, self.threads, self.rounds = model, peers, threads, rounds

    def ours(self, section: str, **job: Any) -> Any:
        job = {"section": section, "model": str(self.model), "threads": self.threads, **job}
        command = [sys.executable, "-m", "benchmarks.runtime_ours", json.dumps(job)]
        return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    def peer(self, name: str, *arguments: Any) -> subprocess.CompletedProcess[str]:
        command = [self.peers / name, "-m", self.model, "-t", self.threads, *arguments]
        return subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True)

    def in_turns(
        self, ours: Callable[[], list[float]], theirs: Callable[[], list[float]]
    ) -> tuple[list[float], list[float]]:
        mine: list[float] = []
        peers: list[float] = []
        for turn in range(self.rounds):
            for side in (True, False) if turn % 2 else (False, True):
                if side:
                    mine += ours()
                else:
                    peers += theirs()
        return mine, peers

    def llama_bench(self, *arguments: Any) -> list[float]:
        done = self.peer("llama-bench", "-r", 3, "-o", "json", *arguments)
        return [float(rate) for run in json.loads(done.stdout) for rate in run["samples_ts"]]

    def decode(self) -> None:
        mine, peers = self.in_turns(
            lambda: list(self.ours("decode", tokens=128, sampler="greedy", rounds=3)["rates"]),
            lambda: self.llama_bench("-p", 0, "-n", 128, "-d", STORY_TOKENS),
        )
        show(f"greedy decoding, text out, against llama-bench tg128 @ d{STORY_TOKENS}", mine, peers, "tokens/s", 0.97)

    def sampled(self) -> None:
        """Both write the same number of tokens behind the same prompt, in slices of a sixteenth of a second."""
        tokens = 256
        for name, what in (("default", "llama.cpp's default sampler"), ("chat", "the chat's sampler")):
            seconds = [
                in_slices(self._written(name, tokens), self._completion(name, tokens))
                for _ in range(SLICED_RUNS * self.rounds)
            ]
            mine, peers = ([tokens / each for each in side] for side in zip(*seconds, strict=True))
            show(f"decoding with {what}, text out, against llama-completion", mine, peers, "tokens/s", 1.0)
            ratios = [one / other for one, other in zip(mine, peers, strict=True)]
            error = statistics.stdev(ratios) / len(ratios) ** 0.5
            print(f"  mean of {len(ratios)} pairs {statistics.mean(ratios):.4f} ± {error:.4f}", flush=True)

    def _written(self, sampler: str, tokens: int) -> list[str]:
        job = {"section": "written", "model": str(self.model), "threads": self.threads, "tokens": tokens}
        job |= {"sampler": sampler, "prompt": chatml(STORY)}
        return [sys.executable, "-m", "benchmarks.runtime_ours", json.dumps(job)]

    def _completion(self, sampler: str, tokens: int) -> list[str]:
        asked = SAMPLINGS[sampler]
        temperature, top_p, penalty = map(str, (asked.temperature, asked.top_p, asked.repeat_penalty))
        return [
            *(str(self.peers / "llama-completion"), "-m", str(self.model), "-t", str(self.threads), "-no-cnv"),
            *("--ignore-eos", "-n", str(tokens + 1), "--temp", temperature, "--top-p", top_p),
            *("--repeat-penalty", penalty, "-c", "4096", "-p", chatml(STORY), "--no-display-prompt", "-s", "1"),
            *("--log-verbosity", "0"),
        ]

    def same(self) -> None:
        """Greedy answers, token for token as far as their texts show it."""
        prompts = [chatml(question) for question in QUESTIONS]
        mine = [self._together_texts([prompt])[0] for prompt in prompts]
        theirs = []
        for prompt in prompts:
            done = self.peer(
                *("llama-completion", "-no-cnv", "-n", TOGETHER_TOKENS, "--temp", 0, "-c", 512, "-b", 512),
                *("-p", prompt, "--no-display-prompt"),
            )
            theirs.append(done.stdout.removesuffix("\n\n").removesuffix(" [end of text]"))
        same = sum(one.strip() == other.strip() for one, other in zip(mine, theirs, strict=True))
        print(f"\ngreedy answers equal to llama-completion's: {same} of {len(prompts)}")
        for one, other in zip(mine, theirs, strict=True):
            if one.strip() != other.strip():
                print(f"  ours   {one!r}\n  theirs {other!r}")

    def prefill(self) -> None:
        mine, peers = self.in_turns(
            lambda: list(self.ours("prefill", tokens=512, rounds=3)["rates"]),
            lambda: self.llama_bench("-p", 512, "-n", 0),
        )
        show("prefill of 512 tokens against llama-bench pp512", mine, peers, "tokens/s", 0.97)

    def first(self) -> None:
        seen: dict[str, Any] = {}

        def ours() -> list[float]:
            seen.update(self.ours("first", words=200, rounds=3))
            return list(seen["seconds"])

        def theirs() -> list[float]:
            if not seen:
                ours()
            done = self.peer(
                "llama-completion", "-no-cnv", "-n", 2, "--temp", 0, "-c", 4096, "-p", seen["prompt"], "--ignore-eos"
            )
            read = re.search(r"prompt eval time = +([\d.]+) ms / +(\d+) tokens", done.stderr)
            sampled = re.search(r"sampling time = +([\d.]+) ms", done.stderr)
            assert read
            assert sampled
            assert abs(int(read[2]) - seen["prompt_tokens"]) <= 1
            return [(float(read[1]) + float(sampled[1]) / 2) / 1000]

        mine, peers = self.in_turns(ours, theirs)
        show(
            f"prompt in ({seen['prompt_tokens']} tokens) to first text out, against llama-completion",
            mine,
            peers,
            "s",
            1.05,
        )

    def text_layer(self) -> None:
        """What a token costs between its bytes and the text that is shown; no model."""
        print("\nText layer, µs a token (stop string, reasoning, UTF-8), wanted 60 at most and flat:")
        for count in (128, 512, 2048, 8192):
            costs = []
            for _ in range(5):
                stream = Detokenizer(["\nUser:", "<|end|>"])
                pieces = [word.encode() + b" " for word in text(count).split()]
                begin_s = time.perf_counter()
                for piece in pieces:
                    stream.feed(piece)
                stream.flush()
                costs.append(1e6 * (time.perf_counter() - begin_s) / count)
            print(f"  {count:>5} tokens: {statistics.median(costs):.1f}")

    def together(self) -> None:
        for clients in (1, 4, 8, 16):
            prompts = [chatml(question) for question in QUESTIONS[:clients]]
            texts: list[str] = []
            mine, peers = self.in_turns(
                lambda prompts=prompts, texts=texts: self._together_rates(prompts, texts),  # type: ignore[misc]
                lambda prompts=prompts: [self._server_rate(prompts)],  # type: ignore[misc]
            )
            show(f"{clients} at a time, all tokens/s, against llama-server -np {clients}", mine, peers, "tokens/s", 1.0)
            if clients > 1:
                seen = self.ours("same", tokens=TOGETHER_TOKENS, prompts=prompts)
                gaps = ", ".join(f"{gap:.2f}" for gap in sorted(seen["gaps"]))
                parted = f"; the others part where two tokens were {gaps} nats apart" if gaps else ""
                print(f"  {seen['same']} of {clients} answers are those that each gets alone{parted}", flush=True)
                both = self._server_texts(prompts), [self._server_texts([prompt])[0] for prompt in prompts]
                print(f"  llama-server: {sum(map(str.__eq__, *both))} of {clients}", flush=True)

    def _together_rates(self, prompts: list[str], texts: list[str]) -> list[float]:
        done = self.ours("together", tokens=TOGETHER_TOKENS, prompts=prompts, rounds=2)
        texts[:] = done["texts"]
        return list(done["rates"])

    def _together_texts(self, prompts: list[str]) -> list[str]:
        return list(self.ours("together", tokens=TOGETHER_TOKENS, prompts=prompts, rounds=1)["texts"])

    def _server_rate(self, prompts: list[str]) -> float:
        with self._server(len(prompts)):
            begin_s = time.perf_counter()
            with concurrent.futures.ThreadPoolExecutor(len(prompts)) as pool:
                answers = list(pool.map(lambda prompt: ask_server(prompt, TOGETHER_TOKENS), prompts))
            return sum(int(answer["tokens_predicted"]) for answer in answers) / (time.perf_counter() - begin_s)

    def _server_texts(self, prompts: list[str]) -> list[str]:
        with self._server(len(prompts)), concurrent.futures.ThreadPoolExecutor(len(prompts)) as pool:
            return [answer["content"] for answer in pool.map(lambda each: ask_server(each, TOGETHER_TOKENS), prompts)]

    @contextlib.contextmanager
    def _server(self, slots: int) -> Iterator[None]:
        """llama-server, warmed up."""
        command = [
            *(str(self.peers / "llama-server"), "-m", str(self.model), "-t", str(self.threads), "-np", str(slots)),
            *("-c", str(512 * slots), "--port", str(PORT), "--no-webui"),
        ]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
            try:
                wait_for_server()
                ask_server(chatml(STORY), 4)
                yield
            finally:
                server.terminate()

    def memory(self) -> None:
        mine, peers = self.in_turns(
            lambda: [self.ours("memory", tokens=64)["peak_bytes"] / 1e6],
            lambda: [self._completion_peak() / 1e6],
        )
        show("peak memory of one answer, against llama-completion", mine, peers, "MB", 1.0)
        print(f"  {statistics.median(mine) - statistics.median(peers):+.0f} MB (wanted +120 at most)")
        print("\nMemory, threads and open files over many answers and loads:")
        for moment, figures in self.ours("flat", answers=1000, loads=100).items():
            memory, threads, files = figures["memory_bytes"] / 1e6, figures["threads"], figures["files"]
            print(f"  {moment:<20} {memory:8.1f} MB {threads:>3} threads {files:>3} files")

    def _completion_peak(self) -> int:
        command = [
            *(str(self.peers / "llama-completion"), "-m", str(self.model), "-t", str(self.threads), "-no-cnv"),
            *("--ignore-eos", "-n", "64", "--temp", "0", "-c", "4096", "-b", "512", "-p", chatml(text(300))),
        ]
        with psutil.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            peak = 0
            status = Path(f"/proc/{process.pid}/status")
            while process.poll() is None:
                found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.exists() else None
                peak = max(peak, int(found[1]) * 1024 if found else 0)
                time.sleep(0.02)
        return peak

    def speculative(self) -> None:
        """Look-up, and the model itself as the draft of copies of it that cost 2 and 3 times as much a token."""
        print("\nGuessing (greedy, in turns with plain decoding):")
        self._guessing("prompt look-up", self.ours("lookup", tokens=128, rounds=self.rounds, draft=None))
        for kind in ("F16", "F32"):
            with tempfile.TemporaryDirectory() as folder:
                large = Path(folder) / "large.gguf"
                command = [self.peers / "llama-quantize", "--allow-requantize", self.model, large, kind]
                subprocess.run(list(map(str, command)), capture_output=True, check=True)
                bench = Bench(large, self.peers, self.threads, self.rounds)
                seen = bench.ours("lookup", tokens=128, rounds=self.rounds, draft=str(self.model))
                self._guessing(f"{self.model.name} as draft of its copy in {kind}", seen)

    @staticmethod
    def _guessing(how: str, tasks: dict[str, Any]) -> None:
        for task, seen in tasks.items():
            plain, guessing = (statistics.median(seen["rates"][name]) for name in ("plain", "guessing"))
            same = "the same text" if seen["same"] else "ANOTHER TEXT"
            print(
                f"  {how}, an answer that {task}: {plain:.0f} -> {guessing:.0f} tokens/s "
                f"({guessing / plain:.2f}x), {seen['guessed']} of {seen['tokens']} tokens guessed, {same}",
                flush=True,
            )


SECTIONS = ("same", "decode", "sampled", "prefill", "first", "text_layer", "together", "memory", "speculative")


def main() -> None:
    """Run the sections that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path, required=True, help="folder with llama-bench and the others")
    parser.add_argument("--model", type=Path, help="a model file  [default: the embedded one]")
    parser.add_argument("--shape", choices=tuple(SHAPES), help="random weights of this shape in place of a file")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=SECTIONS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = options.model or embedded_gguf()
        if options.shape:
            write_random_model(Path(folder) / "random.gguf", SHAPES[options.shape], model)
            model = Path(folder) / "random.gguf"
        bench = Bench(model, options.peers, options.threads, options.rounds)
        for section in options.only:
            getattr(bench, section)()


def show(what: str, ours: list[float], theirs: list[float], unit: str, wanted: float) -> None:
    """One line: both medians with their spread, and the ratio."""
    mine, peers = statistics.median(ours), statistics.median(theirs)
    digits = 3 if mine < 10 else 1
    print(
        f"\n{what}:\n  ours {mine:.{digits}f} [{min(ours):.{digits}f}, {max(ours):.{digits}f}] {unit}, "
        f"theirs {peers:.{digits}f} [{min(theirs):.{digits}f}, {max(theirs):.{digits}f}]: "
        f"{mine / peers:.3f}x (wanted {wanted})",
        flush=True,
    )


def chatml(question: str) -> str:
    """A question as the embedded model was trained to be asked."""
    return f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"


def wait_for_server() -> None:
    for _ in range(600):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/health", timeout=1) as response:
                if response.status == 200:
                    return
        except OSError:
            time.sleep(0.1)
    raise SystemExit("llama-server does not answer")


def ask_server(prompt: str, tokens: int) -> dict[str, Any]:
    """Its answer, with how many tokens it wrote."""
    body = {"prompt": prompt, "n_predict": tokens, "temperature": 0, "cache_prompt": False}
    request = urllib.request.Request(
        f"http://127.0.0.1:{PORT}/completion", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=600) as response:
        answer: dict[str, Any] = json.load(response)
        return answer


if __name__ == "__main__":
    main()
