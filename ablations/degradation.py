"""Degradation: deeper plain networks train worse, deeper residual ones do not (He et al. 2015, table 2; figures 1, 4, 6).

ray job submit -- python ablations/degradation.py

Cost: 24 runs; digits 4 minutes on 2 CPU cores (5 seeds: 7), cifar10 4.9e16 multiply-adds.
Expect: the training error of plain networks rises with depth, that of residual ones stays near zero.
"""

from ablations import Study, main

STUDY = Study(
    name="degradation",
    question="Does training error rise with depth, and do shortcuts cure it?",
    factors={"shortcut": ("none", "A"), "depth": (20, 32, 44, 56)},
    baseline={"shortcut": "none"},
    on={"smoke": {"factors": {"depth": (8, 14)}}, "imagenet": {"factors": {"depth": (18, 34)}}},
)

if __name__ == "__main__":
    main(STUDY)
