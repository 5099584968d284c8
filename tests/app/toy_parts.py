"""A whole analysis in forty lines, as the test of the frame writes it to a folder: settings, then units and result."""

SETTINGS = '''"""Settings of the toy."""
from __future__ import annotations
from dataclasses import dataclass
from probe.frame.settings import Settings as Base, setting

@dataclass(frozen=True, kw_only=True)
class Settings(Base):
    """How sharp is the attention of each head?"""
    presets = {"quick": {"prompts": 2}}
    prompts: int = setting(3, "Prompts to read", least=1)
    pause: float = setting(0.0, "Seconds to wait before each prompt", least=0)
'''

ANALYSIS = '''"""The toy: units, record, result."""
from dataclasses import dataclass
import time, pandas as pd, plotly.graph_objects as go, torch
from probe.frame.analysis import Analysis, Measured, Prompt, Unit
from probe.frame.findings import Claim, Estimate, above
from probe.frame.scores import HeadScore
from probe.frame.tables import Column, Table, decimal
from probe.figures import Plot
from probe.saving.results import Result

SHARP = Claim(name="sharp", text="Heads look at one key", source="this test", quantity="mean weight", rule=above(0.5))

@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Sharp(Result):
    weight: torch.Tensor
    def to_df(self): return pd.DataFrame({"layer": range(len(self.weight)), "mean": self.weight.mean(1).tolist()})
    def figures(self): return {"layers": Plot(go.Figure(go.Heatmap(z=self.weight.tolist())), headline="Weights")}
    def tables(self):
        columns = Column(name="layer", header="layer"), Column(name="mean", header="weight", write=decimal)
        return {"layers": Table(rows=self.to_df(), columns=columns, meaning="weight: of the largest key, over heads")}
    def findings(self):
        mean = float(self.weight.mean())
        return (SHARP.finding(Estimate(mean, mean - 0.01, mean + 0.01, n=len(self.weight))),)
    def head_scores(self): return {"sharp": HeadScore(values=self.weight, unit="share", sign="higher: one key")}

class Toy(Analysis):
    name, claims = "toy", (SHARP,)
    def plan(self, facts, records): return [Unit(f"prompt {n}", {"n": n}) for n in range(self.settings.prompts)]
    def measure(self, model, unit):
        time.sleep(self.settings.pause)
        ids = torch.randint(100, 1000, (8,), generator=torch.Generator().manual_seed(unit.arguments["n"]))
        stats = model.run_with_stats(ids, stats=("top",))[1]
        return Measured(stats.top_weight[:, 0, :, :, 0].mean(-1).tolist(), [Prompt.of(ids)])
    def reduce(self, model, records, manifest):
        return Sharp(manifest=manifest, weight=torch.tensor(list(records.values())).mean(0))
'''
