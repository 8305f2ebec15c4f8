"""What a training shows on its stderr, without a training: run by the tests of the live view in a child process."""

import os
import sys
import time
from pathlib import Path

from finetune.monitor.live_view import LiveView, make_display
from gladstone.commands.progress import step
from gladstone.process.redirect_output import redirect_output
from tests.finetune.histories import made_up_history

HOSTILE = "\x1b]0;taken over\x07[bold red]plain[/]\r\x9b2Jend\nof the answer 🩺 " + "and so on " * 40
STEPS, TOTAL = 9, 12


def main() -> None:
    """Steps, a validation and a sample; then waits for a line on stdin, or for Ctrl-C."""
    log = Path(sys.argv[1])
    display = make_display()
    with redirect_output(log):
        with step(display, "Loading"):
            display.update(0.5, "a note " * 20)
            time.sleep(0.3)
        with step(display, "Training"):
            for stats in made_up_history(TOTAL).steps[:STEPS]:
                print("a library says this")
                os.write(2, b"and C code this\n")
                display.update(stats.step / TOTAL, f"step {stats.step}/{TOTAL}")
                if isinstance(display, LiveView):
                    display.on_step_end(stats, TOTAL)
                    if stats.step == 5:
                        display.show("a line that stays")
                    if stats.step in (2, 6):
                        display.on_validation_end(stats.step, 1.9 if stats.step == 2 else 2.25)
            if isinstance(display, LiveView):
                display.on_sample(8, "What is asthma?", HOSTILE)
            sys.stdin.readline()
    print("done")


if __name__ == "__main__":
    main()
