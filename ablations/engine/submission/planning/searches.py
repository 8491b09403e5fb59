"""Plans of searches among plans of studies, told apart without Optuna, whose import studies without a space do not need."""

from typing import TYPE_CHECKING

from ablations.engine.study.plan import Plan

if TYPE_CHECKING:
    from ablations.engine.search.plan import SearchPlan


def search_plan(plan: Plan) -> "SearchPlan | None":
    """Return the plan if it is that of a search, else None."""
    if plan.study.space is None:
        return None
    from ablations.engine.search.plan import SearchPlan

    return plan if isinstance(plan, SearchPlan) else None
