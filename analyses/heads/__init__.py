"""Which heads retrieve, induce, copy and sink, and does the model fail without its retrieval heads?

A model that answers from a long context must carry the answer from where it stands to where it is said. Wu et al.
(2024, "Retrieval Head Mechanistically Explains Long-Context Factuality") claim that few heads do this, that they do it
in every context, and that the model hallucinates without them. The analysis tests the claim in four steps:

1. Needles. A sentence with an answer (the needle) is hidden in prose, the model is asked for the answer and decodes
   greedily. A head's retrieval score is the share of the answer's tokens on which the head has its largest weight while
   the model says them (`retrieval_scores` has the formula), a mean over the needles that the model retrieved. A head
   that scores at least 0.1 is called a retrieval head.
2. Other scores. They say what else a retrieval head does: attend to what followed the same token before (induction), to
   the previous token, to an earlier occurrence of the same token, or to the first position (sink), and whether its
   weights raise the logit of the token that it attends to (copying).
3. Validation, if asked for. The highest-scoring heads are pruned, and random heads in the same number as a control,
   while the model answers needles that no head was scored on. Closed-book questions and prose show what else breaks.
4. Comparison, if asked for, with the scores of another run.

We differ from the released code where it is wrong: answers are found by characters instead of ids, depths are exact for
every tokenizer, an answer that is said twice counts once (`--score per_step` counts it twice, as the released code
does), and a model that retrieves nothing is an error instead of a map of zeros. Heads are pruned by removing their
output; the released code's way, the official mask, lets a pruned head attend evenly to all that it sees, and is run
beside it (`pruning_conditions`).

    from probe.analyses import heads
    found = heads.run(model, lengths=(300,))
"""

from probe.frame.lazy import lazy

__getattr__ = lazy(__name__, Settings="settings", run="analysis", Heads="result", compare="comparison")
