"""A worker process of the local machine: `python -m tinc_codec.pipeline.worker`.

It takes pickled tasks from its standard input and answers on its standard output, which both
belong to the process that started it. It is no process of `multiprocessing`, which would import
the caller's main module again, and whose orphans live on.
"""

import os
import pickle
import queue
import sys
import threading
from typing import Any, BinaryIO

__all__ = ["READY", "main"]

READY = "ready"
"""First answer: everything is imported."""


def main() -> None:
    """Answer tasks until the standard input ends."""
    # What libraries print must not get among the answers.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    from tinc_codec.pipeline.tasks import failures, run_task

    _send(answers, READY)
    requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(sys.stdin.buffer, requests), daemon=True).start()
    job = requests.get()
    while True:
        task = requests.get()
        try:
            outcomes = run_task(job, task)
        except Exception as error:
            outcomes = failures(task, error)
        _send(answers, outcomes)


def _receive(stream: BinaryIO, requests: "queue.SimpleQueue[Any]") -> None:
    try:
        while True:
            requests.put(pickle.load(stream))
    finally:
        # The run has ended, or was killed: what is half done is done anew by the next one.
        os._exit(0)


def _send(stream: BinaryIO, answer: Any) -> None:
    pickle.dump(answer, stream, protocol=pickle.HIGHEST_PROTOCOL)
    stream.flush()


if __name__ == "__main__":
    main()
