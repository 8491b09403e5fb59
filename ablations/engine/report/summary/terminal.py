"""The summary over data sets on the terminal."""

from rich.console import Group, RenderableType
from rich.text import Text

from ablations.engine.analysis.datasets.findings import DatasetsFindings
from ablations.engine.analysis.datasets.sentences import scope_sentence
from ablations.engine.analysis.number_format import MISSING, ValueFormat, number, p_value
from ablations.engine.report.fitted_table import FittedTable
from resnet_core.fields import printable


def summary_view(found: DatasetsFindings) -> RenderableType:
    """Return the table of effects by data set with their means, ranks and scores, the answers, and the caveats."""
    formats, datasets = ValueFormat(found.metric, found.decimals), list(found.datasets)
    columns = [*datasets, "mean [95 %]", "p, adjusted"]
    table = FittedTable(["effect"], columns, optional=("p, adjusted", *reversed(datasets)), elsewhere="see the page of the summary")
    for each in found.effects:
        values = {name: formats.signed(effect.difference.mean) for name, effect in each.by_dataset.items()}
        mean = [formats.signed_with_interval(each.mean), p_value(each.mean.p_adjusted)]
        table.add_row([f"{each.factor}: {each.level} − {each.reference}", *(values.get(name, MISSING) for name in datasets), *mean])
    parts: list[RenderableType] = [Text(printable(f"{found.study} on {len(datasets)} data sets: {found.question}"), "bold"), table]
    if found.ranks or found.scores:
        scores = {each.cell: f"{number(each.iqm, 3)} [{number(each.low, 3)}, {number(each.high, 3)}]" for each in found.scores}
        ranks = {cell: number(rank) for cell, rank in found.ranks.mean_ranks.items()} if found.ranks else {}
        order = FittedTable(["cell"], ["mean rank", "normalized score, IQM [95 %]"], optional=("mean rank",))
        for cell in ranks or scores:
            order.add_row([cell, ranks.get(cell, MISSING), scores.get(cell, MISSING)])
        parts += [Text(), order]
    parts += [Text(scope_sentence(found.datasets), "dim"), Text()]
    parts += [Text(printable(each.text)) for each in found.effects]
    parts += [Text(printable(found.ranks.text))] if found.ranks else []
    return Group(*parts, *(Text(f"Caveat: {printable(flag)}") for flag in found.flags))
