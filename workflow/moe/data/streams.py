"""Running text as parallel streams, each read block by block: still a pure function of the step.

The text of L·B tokens is cut into B streams of L; block i of a stream is its tokens[o + i*S : o + i*S + S + 1], with an
offset o of each pass. B: streams, S: tokens of a block.
"""

from bisect import bisect_right

import numpy as np


class Streams:
    """Batches of blocks, one of every stream, that go on where the step before ended; same promises as Windows.

    At the end of the streams (a rest shorter than a block is not read) they start anew, at a random offset below one
    block (RMoE's base, CompeteSMoE; the first pass at 0). `starts(step)` says where: what was read before is then not
    the text before. `len()` is the blocks of the first pass.
    """

    def __init__(self, corpus, split, sequence, batch, seed=0):
        if batch < 1 or sequence < 1:
            raise ValueError(f"batch is {batch}, sequence {sequence}, expected 1 or more")
        self.tokens, self.sequence, self.batch, self.seed = corpus.tokens(split), sequence, batch, seed
        self.length = len(self.tokens) // batch
        if self.length <= sequence:
            raise ValueError(
                f"{corpus.folder}: split {split} has {len(self.tokens)} tokens, {self.length} for each of {batch}"
                f" streams, fewer than a block of {sequence} + 1: use more text, fewer streams or shorter blocks"
            )
        self._firsts = [0]  # the first step of each pass that was asked for so far, and of the next

    def __len__(self):
        return self._blocks(0)

    def at(self, step, rank=0, ranks=1):
        """Blocks of a step, int64 [B/ranks, S+1]; the ranks' parts in order make the whole batch."""
        if self.batch % ranks or not 0 <= rank < ranks:
            raise ValueError(f"batch {self.batch} is not divisible among rank {rank} of {ranks} ranks")
        share = self.batch // ranks
        epoch, block = self._place(step)
        start = self._offset(epoch) + block * self.sequence
        streams = np.arange(rank * share, (rank + 1) * share)[:, None]
        return self.tokens[streams * self.length + start + np.arange(self.sequence + 1)].astype(np.int64)

    def starts(self, step):
        """Whether a step's blocks are the first ones of a pass."""
        return self._place(step)[1] == 0

    def _place(self, step):
        """(pass, block in it) of a step."""
        while self._firsts[-1] <= step:
            self._firsts.append(self._firsts[-1] + self._blocks(len(self._firsts) - 1))
        epoch = bisect_right(self._firsts, step) - 1
        return epoch, step - self._firsts[epoch]

    def _offset(self, epoch):
        if epoch == 0:
            return 0
        most = min(self.sequence, self.length - self.sequence)  # room for a block is left
        return int(np.random.default_rng((abs(int(self.seed)), epoch)).integers(most))

    def _blocks(self, epoch):
        return (self.length - 1 - self._offset(epoch)) // self.sequence
