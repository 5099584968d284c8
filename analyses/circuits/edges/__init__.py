"""The circuit of a task as edges: every edge is scored from gradients, and circuits of the best ones are run.

An edge carries what a sender (the embedding, a head, an MLP) writes to what a receiver (queries, keys or values of a
head, an MLP, the logits) reads. Its score, EAP's (Syed et al. 2023) or EAP-IG's (Hanna et al. 2024), estimates how the
logit difference changes if the edge alone carries what its sender writes in the corrupted prompt:

    score(u -> v) = sum over positions of (write of u, corrupted - write of u, clean) . d LD / d (input of v)

Three measurements test the scores:

    exact     the best edges are patched one at a time, beside what their scores say
    curve     MIB's faithfulness f (Mueller et al. 2025) of circuits of growing size, with its areas CPR and CMD: edges
              ranked by magnitude, and by how much they support the answer
    random    circuits with the same number of edges, drawn at random

Half of the prompts, drawn by the seed, give the scores. The curve is of the other half, which the scores have not seen.
"""

from probe.frame.lazy import lazy

__getattr__ = lazy(__name__, run="analysis", EdgeSearch="analysis", Edges="result", Settings="settings")
