"""A generator that runs ahead of its caller, in a thread."""

import queue
from threading import Event, Thread


class Ahead:
    """Iterate over a generator that runs in a thread, `most` items before the caller."""

    def __init__(self, items, most):
        self.items, self.queue, self.stopped = items, queue.Queue(most), Event()
        self.thread = Thread(target=self._run, daemon=True)

    def _run(self):
        try:
            for item in self.items:
                if not self._put((item, None)):
                    return
            self._put((None, StopIteration()))
        except BaseException as error:  # handed to the caller's thread
            self._put((None, error))

    def _put(self, entry):
        while not self.stopped.is_set():
            try:
                self.queue.put(entry, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def __enter__(self):
        self.thread.start()
        return self

    def __iter__(self):
        while True:
            item, error = self.queue.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item

    def __exit__(self, *failure):
        self.stopped.set()
        self.thread.join()
