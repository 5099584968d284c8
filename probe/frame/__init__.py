"""The frame of every analysis: settings, units of work, the loop that runs and keeps them, findings and scores.

An analysis is a subclass of `Analysis` with a `Settings` beside it. The frame owns everything else, from progress and
resuming to the manifest; `probe.analyses.TABLE` lists the analyses.
"""
