"""The page on a port of this machine, in a folder of its own that goes with it."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fadeup.demo.worker import Worker

TIDY_SECONDS = 60
"""Between two looks at what lies in the folder."""


def serve(models: Sequence[str], *, host: str, port: int, max_pixels: int, seconds: float, megabytes: int) -> None:
    """Serve the page until the process is ended; nothing of it is left on the disk then.

    Args:
        models: Of `Studio`.
        host: Address of the machine's that is listened on.
        port: The same.
        max_pixels: Of `Studio`.
        seconds: Of a computation.
        megabytes: Of an uploaded file.

    Raises:
        ValueError: A model is none, or the address cannot be listened on.
    """
    _check_address(host, port)
    folder = Path(tempfile.mkdtemp(prefix="fadeup-demo-"))
    os.environ["GRADIO_TEMP_DIR"] = str(folder)
    os.environ.setdefault("MPLCONFIGDIR", str(folder / "matplotlib"))
    worker = Worker(models, max_pixels, seconds)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        # The worker starts on another core while Gradio is imported here: seconds each.
        from fadeup.demo.layout import build, launch
        from fadeup.demo.page import Page

        page = Page(worker, folder)
        threading.Thread(target=page.warm, daemon=True).start()
        launch(build(page), page, host, port, max_pixels, megabytes)
        print(f"http://{host}:{port}", flush=True)
        while True:
            time.sleep(TIDY_SECONDS)
            page.tidy()
    finally:
        worker.close()
        shutil.rmtree(folder, ignore_errors=True)


def _check_address(host: str, port: int) -> None:
    try:
        with socket.create_server((host, port)):
            pass
    except OSError as error:
        raise ValueError(f"--host and --port must be free to be listened on, got {host}:{port}: {error}") from error


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt
