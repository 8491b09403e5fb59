"""Depth of residual networks (He et al. 2015, table 6; on ImageNet tables 3 and 4).

ray job submit -- python ablations/depth.py

Cost: 15 runs; digits 5 minutes on 2 CPU cores, cifar10 4.3e16 multiply-adds. --levels depth=1202 for a thousand layers.
Expect: on digits no gain, 20 layers being enough; on CIFAR-10 8.75 % at 20 layers and 6.43 % at 110 (the paper).
"""

from ablations import Study, main

IMAGENET = {"depth": (18, 34, 50, 101, 152), "block": ("basic", "bottleneck"), "shortcut": ("B",)}

STUDY = Study(
    name="depth",
    question="How much does a residual network gain from depth, and where does the gain end?",
    factors={"depth": (20, 32, 44, 56, 110)},
    baseline={"depth": 20},
    on={
        "smoke": {"factors": {"depth": (8, 14)}, "baseline": {"depth": 8}},
        "imagenet": {"factors": IMAGENET, "baseline": {"depth": 34, "block": "basic"}},
    },
)

if __name__ == "__main__":
    main(STUDY)
