"""Reuse: how many heads of one task's circuit another task uses, beside no reuse and full reuse.

Merullo et al. 2024, section 4. Two tasks' effects are compared stage by stage in two ways:

    shared     how many of the k largest effects, whatever their sign, belong to the same heads; k k / heads by chance
    weighted   sum over heads of min(|p|, |q|), p and q the effects of each task as shares of their sum

Two controls give these numbers a scale. The first task is compared with itself on other prompts, which is the highest
overlap that can be expected, and with an unrelated task. Heads that write to the logits on every task overlap too,
without being anybody's circuit. The authors compare the top 2 percent of heads; here k is a setting.
"""

from probe.frame.lazy import lazy

__getattr__ = lazy(__name__, run="analysis", Comparison="analysis", Reuse="result", Settings="settings")
