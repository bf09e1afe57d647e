"""
Long work says how far it is, in plain lines: what, percent, and the time that is left.

    progress = Progress('eval: rollouts', 1000)
    for batch in batches:
        ...
        progress.add(len(batch))
"""
import os
from time import perf_counter

from runtime.configurator import say

EVERY = 10.                            # seconds between two lines, at least; shorter work is silent


def duration(seconds):
    """A time as text: 5 -> '0m05s', 4000 -> '1h06m', 300000 -> '3d11h'"""
    seconds = int(seconds)
    if seconds < 3600:
        return f'{seconds // 60}m{seconds % 60:02d}s'
    minutes = seconds // 60
    if minutes < 48 * 60:
        return f'{minutes // 60}h{minutes % 60:02d}m'
    hours = minutes // 60
    return f'{hours // 24}d{hours % 24:02d}h'


class Progress:
    """How much of one piece of work is done. The first line comes after EVERY / 2 seconds."""

    def __init__(self, what, total):
        """what: begins each line. total: amount of work, in the units of `add`."""
        self.what = what
        self.total = total
        self.done = 0
        self.start = perf_counter()
        self.next = self.start + EVERY / 2

    def add(self, n=1):
        """More of it is done. Prints a line where one is due, once for several processes."""
        self.done += n
        now = perf_counter()
        expected = (now - self.start) * self.total / self.done
        is_first = os.environ.get('RANK', '0') == '0'
        if now < self.next or expected < EVERY or self.done >= self.total or not is_first:
            return
        self.next = now + EVERY
        left = duration(expected - (now - self.start))
        say(f'{self.what} {self.done / self.total:.0%} | eta {left}')


def counted(what, items):
    """The items of a sequence, one after another, with lines of progress."""
    progress = Progress(what, len(items))
    for item in items:
        yield item
        progress.add()
