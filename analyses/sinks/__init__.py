"""Which tokens do attention heads look at although nothing is there, which activations make them do so, and what for?

An attention sink is a token that receives much attention whatever the query; the first token is one in most language
models. A massive activation is one of the few numbers in the residual stream that are thousands of times larger than
the rest; the first token carries most of them. The analysis takes these steps.

1. Each text is read once, without a map of attention (`passes.measure`):

       first-token mass   mean over the queries i >= 1 of p_i0                    (Xiao et al. 2023, StreamingLLM)
       sink rate          share of heads whose column mean c_0 exceeds epsilon    (Gu et al. 2024)
       later sink         a token k > 0 that a rule calls a sink of a head        (`probe.interventions.sink_rules`)
       value norm ratio   |v_0| / median |v_j|: small means that attending to the first token adds little
       massive            |x| > 100 and 1000 times the layer's median             (Sun et al. 2024)

   The column mean of key k is c_k = (1 / (N - k)) sum_{i >= k} p_ik, over the N - k queries that see it.
2. The largest dimension that is massive on a first token is set there, after the layer that writes it: to zero, and to
   its mean over the other texts. As controls, a neighbouring dimension and random ones are set to zero, and so are all
   dimensions but this one (`passes.cause`).

Sun et al. predict that zero ruins the model and that the mean does no harm. They also hold massive activations to be
the cause of the attention on the first token, so the attention under each condition is measured as well.

We differ from Gu et al. in the length (they read 64 tokens; here texts are read whole), and from Sun et al. in the
mean, which is over the other texts only, so that a text is never repaired with its own value.
"""

from probe.frame.lazy import lazy

__getattr__ = lazy(
    __name__, run="analysis", SinkAnalysis="analysis", Settings="settings", Sinks="result", Prose="texts",
)  # fmt: skip
