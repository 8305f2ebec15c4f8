"""A side of benchmarks/gpu_check whose orders end in every way that an order can."""

import os
import time
from typing import Any

from benchmarks.gpu_check.results import CannotRunError
from benchmarks.gpu_check.side import serve


class Orders:
    def __init__(self, settings: dict[str, Any]) -> None:
        self._settings, self._asked = settings, 0

    def answer(self, order: str, arguments: dict[str, Any]) -> dict[str, Any]:
        self._asked += 1
        print("noise of a library", flush=True)
        if order == "die":
            os._exit(7)
        if order == "sleep":
            time.sleep(600)
        if order == "refuse":
            raise CannotRunError("there is no such device")
        if order == "fail":
            raise RuntimeError(arguments["words"])
        if order == "import":
            __import__(arguments["name"])
        return {"asked": self._asked, **self._settings, **arguments}


if __name__ == "__main__":
    serve(Orders)
