"""Degradation: deeper plain networks train worse, deeper residual ones do not (He et al. 2015, table 2; figures 1, 4, 6).

ray job submit -- python ablations/degradation.py
"""

from ablations.engine.cli import main
from ablations.engine.study import Study

STUDY = Study(
    name="degradation",
    question="Does training error rise with depth, and do shortcuts cure it?",
    factors={"shortcut": ("none", "A"), "depth": (20, 32, 44, 56)},
    baseline={"shortcut": "none"},
    on={"smoke": {"factors": {"depth": (8, 14)}}, "imagenet": {"factors": {"depth": (18, 34)}}},
)

if __name__ == "__main__":
    main(STUDY)
