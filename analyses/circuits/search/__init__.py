"""The circuit of a task: the heads through which its answer comes, stage by stage from the logits backwards.

The method is path patching (Wang et al. 2022; Merullo et al. 2024). Each stage patches every head along its path into
what the stage before kept; all other heads write what they write in the clean prompt:

    logits    heads -> logits                            movers, and heads that work against them
    queries   heads -> queries of the movers at END      inhibition heads, content gatherers
    values    heads -> values that those heads read      induction and duplicate-token heads
    keys      heads -> keys that those heads compare     earlier heads, such as previous-token heads

    effect = 100 (LD patched - LD clean) / (LD corrupted - LD clean), a quotient of means over prompts

A positive effect supports the answer. A stage keeps its largest effects, if they exceed one percent of the gap and
twice their standard error. The circuit is what all stages keep. Knock-outs of everything else test it, beside random
circuits of the same size (`knockout`).

Wang et al. print the effect with the opposite sign and divide by the clean LD. The authors freeze no MLPs, and neither
does this search unless it is asked to.
"""

from probe.frame.lazy import lazy

__getattr__ = lazy(__name__, run="analysis", Search="analysis", Circuit="result", Settings="settings")
