"""Repair: the mechanism of one task, forced by hand to work on another task.

Merullo et al. 2024, section 5. On IOI a head reads the wrong name from END and demotes it. On Colored Objects the same
head is parked on the first token. Here the END rows of the heads that IOI shows are forced onto the wrong answers of
the other task, in equal parts, and accuracy shows whether they demote those too.

This is an oracle: the right answer says which answers are wrong. It is evidence about a mechanism, never a gain. The
heads come from IOI's effects alone. Three controls show what forcing by itself does: the same number of other heads
forced onto the same tokens, the same heads forced onto random tokens, and the same heads forced onto the right answer.
"""

from probe.frame.lazy import lazy

__getattr__ = lazy(__name__, run="analysis", Repairing="analysis", Repair="result", Settings="settings")
