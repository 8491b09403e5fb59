"""Responses and gradients of every layer, plain against residual (He et al. 2015, figure 7 and section 4.1).

ray job submit -- python ablations/responses.py

Cost: 18 runs; digits 6 minutes on 2 CPU cores, cifar10 6.2e16 multiply-adds.
Expect: gradients of deep plain networks explode towards the input, those of residual ones do not; small residual functions
need more steps than digits have.
"""

from ablations import Study, main

STUDY = Study(
    name="responses",
    question="Are residual functions small, and do gradients vanish in plain networks?",
    factors={"shortcut": ("none", "A"), "depth": (20, 56, 110)},
    baseline={"shortcut": "none"},
    settings={"probes": ("responses", "gradients")},
    on={"smoke": {"factors": {"depth": (8, 14)}}},
)

if __name__ == "__main__":
    main(STUDY)
