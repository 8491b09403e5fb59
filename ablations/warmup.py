"""Warm-up of a very deep network at the paper's learning rate (He et al. 2015, section 4.2 on 110 layers).

ray job submit -- python ablations/warmup.py

Cost: 12 runs; digits 5 minutes on 2 CPU cores, cifar10 5.6e16 multiply-adds.
Expect: on digits a warm-up of 20 steps helps in the mean and seeds scatter widely; the paper needs 400 steps at 110 layers.
"""

from ablations import Study, main

STUDY = Study(
    name="warmup",
    question="Does a deep network need a warm-up to start learning at rate 0.1?",
    factors={"warmup_error": (None, 80.0), "depth": (56, 110)},
    baseline={"warmup_error": None},
    settings={"lr": 0.1},
    on={"smoke": {"factors": {"depth": (8, 14)}}},
)

if __name__ == "__main__":
    main(STUDY)
