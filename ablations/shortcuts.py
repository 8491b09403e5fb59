"""Shortcut options A, B and C, and none (He et al. 2015, table 3; section 4.1).

ray job submit -- python ablations/shortcuts.py

Cost: 24 runs; digits 4 minutes on 2 CPU cores, cifar10 5.0e16 multiply-adds.
Expect: plain-56 fails to train where A, B and C learn; A and B alike, C no better for its parameters.
"""

from ablations import Study, main

STUDY = Study(
    name="shortcuts",
    question="Which shortcut helps a residual network, and by how much?",
    factors={"shortcut": ("none", "A", "B", "C"), "depth": (20, 56)},
    baseline={"shortcut": "A"},
    on={"smoke": {"factors": {"depth": (8, 14)}}, "imagenet": {"factors": {"depth": (34,)}}},
)

if __name__ == "__main__":
    main(STUDY)
