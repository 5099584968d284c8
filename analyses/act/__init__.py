"""Does a model answer better if attention sinks in the middle of its prompt give up attention, and is that why?

An attention sink is a token that receives much attention whatever the query. Yu et al. 2024 (ICML) calibrate the sinks
behind the first token (later sinks) in the heads where that helps: a sink keeps a share beta of its weight, and the
other tokens get the rest (`probe.interventions.CalibrateSinks`, "ACT"). The analysis takes these steps on a task of
prompts that a label follows, split into a calibration set and others.

1. Gradient filter: one backward pass over the calibration set gives d loss / d gate of every head, where a gate blends
   a head between its own output and its calibrated one (`gradient_filter`). Heads are ranked by it. Their rank is by
   the loss, because accuracy does not move on small sets.
2. Conditions: no heads, the best k, the worst k, all heads, and several random sets of k heads are calibrated on every
   split.
3. Label bias: one constant for each label, fitted on the calibration set and added to the scores without touching the
   model, is what a shift of the label prior does by itself. It leaves the ROC AUC unchanged, so a gain with the same
   AUC says that labels are preferred differently, and not that texts are told apart better.
4. Exact filter: single heads, drawn at random, are calibrated one at a time, as the paper does with all heads. Their
   change of the loss is compared with the gradient.

We differ from the paper in ranking by a gradient instead of one run of the set for each head, and in the controls.
"""

from probe.frame.lazy import lazy

__getattr__ = lazy(
    __name__, run="analysis", ActAnalysis="analysis", Settings="settings", Calibration="result",
    Example="classification", read="classification",
)  # fmt: skip
