"""How does each head attend on your own texts? Any attention statistic, averaged over the parts of any text.

An entropy, an attention distance or a share of attention on the first token is a number for each query of each head.
`probe stats` measures these numbers on the user's texts and averages them over the parts that the user thinks in:

1. `corpus` reads texts and chat transcripts from files; `prompts` turns them into tokens and drops repeated texts.
2. `segments` cuts each text into its units (tokens, words, sentences, turns, thinking and answer) and gives each token
   to one of them; `transcripts` finds the turns that a chat template writes.
3. `statistics` runs the model once on each text and takes the statistics of every query, without building a map.
4. `averages` forms three means. With s(i) the statistic at query i, U_1 ... U_k the units of a text:

       unit   m_u = mean of s(i) over the queries i in U_u     interval: Student's t over the queries
       text   m_t = mean of m_u over the units u of the text   each unit counts once, whatever its length
       head   m   = mean of m_t over the texts t               interval: percentile bootstrap over the texts

The query of the first token is left out of all means: it sees one key, itself, so that its entropy is 0, its largest
weight 1, and its share on the first token 1 in every head of every model.

The statistics and their formulas are those of `probe.kernels.contract`. The analysis tests no claim of a paper, so a
result has no findings; what a mean says of a head has to be tested by an analysis that has a control.

    from probe.analyses import stats
    result = stats.run(model, texts=["The first text ...", "The second ..."], stat=("entropy", "mass"), unit="sentence")
    result.to_df(), result.tidy(), result.head_scores()
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from probe.frame.lazy import lazy

if TYPE_CHECKING:
    from probe.analyses.stats.analysis import Stats as Stats
    from probe.analyses.stats.analysis import run as run
    from probe.analyses.stats.result import TextStatistics as TextStatistics
    from probe.analyses.stats.settings import Settings as Settings

__getattr__ = lazy(__name__, Settings="settings", Stats="analysis", TextStatistics="result", run="analysis")
