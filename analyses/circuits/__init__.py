"""Circuits: the heads and edges through which a model's answer to a task comes.

A task is a set of prompt pairs (`tasks`). Both prompts of a pair have the same number of tokens; the clean one has the
right answer "good", and the corrupted one differs in one respect that makes it wrong. The measure is the logit
difference LD = logit(good) - logit(bad) at END, the last token of the prompt. The gap is the mean LD of the corrupted
prompts less that of the clean prompts, and effects are given in percent of it: a positive effect supports the answer.

    search    heads, by path patching from the logits backwards, and knock-outs that test them
    edges     edges, by integrated gradients, and circuits of growing size that test them
    reuse     how many heads two tasks share, beside two controls
    repair    one task's heads, forced to do on another task what they do on their own

Words that recur: a mover is a head that reads the right answer from END and supports it. A negative mover reads a wrong
answer and supports the right one by demoting the wrong one. An inhibition head acts on what movers read, through their
queries. A parked head puts most of its END row on the first token, where a head that has nothing to do looks.
"""
