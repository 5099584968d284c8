"""The claims that a run of `probe heads` can refute.

The validation's claims compare the heads with a control at one number of heads, ten where ten were pruned, with their
output removed (fill "zero"). The last claim is about the official mask, the way in which the released code prunes.
"""

from __future__ import annotations

from probe.frame.findings import Claim, above, above_control, below, below_control

SPARSE = Claim(
    name="sparse",
    text="Few heads are retrieval heads",
    source="Wu et al. 2024, the property 'sparse': less than 5% of the heads",
    quantity="share of the heads with a retrieval score of at least 0.1",
    rule=below(0.05),
)
INDUCTION = Claim(
    name="induction",
    text="Retrieval heads are mostly induction heads",
    source="Olsson et al. 2022: induction heads also copy in other contexts",
    quantity="Pearson's r of the retrieval and induction scores over the heads",
    rule=above(0.5),
)
NECESSARY = Claim(
    name="necessary",
    text="Without its retrieval heads the model retrieves less than without random heads",
    source="Wu et al. 2024, the property 'causal'",
    quantity="share of held-out needles retrieved with the best heads pruned",
    control="with random heads pruned in the same number",
    rule=below_control(),
)
SPECIFIC = Claim(
    name="specific",
    text="Pruning retrieval heads harms answers from memory less than answers from the context",
    source="Wu et al. 2024, answers with and without chain of thought",
    quantity="fall of the closed-book accuracy with the best heads pruned",
    control="fall of the needle accuracy",
    rule=below_control(),
)
MASK = Claim(
    name="official mask",
    text="The official mask harms prose more than removing the same heads does",
    source="Wu et al. 2024, released code: the scores of a masked head are set to zero before the softmax",
    quantity="rise of the loss on prose under the official mask, in nats per token",
    control="rise with the heads' output removed",
    rule=above_control(),
)
CLAIMS = (SPARSE, INDUCTION, NECESSARY, SPECIFIC, MASK)
