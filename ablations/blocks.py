"""Basic against bottleneck blocks, at equal depth and at equal multiply-adds (He et al. 2015, figure 5; section 4.1).

ray job submit -- python ablations/blocks.py

Cost: 18 runs; digits 6 minutes on 2 CPU cores, cifar10 3.2e16 multiply-adds.
Expect: at equal depth bottlenecks cost a third less and err a little more; at equal multiply-adds the difference shrinks.
"""

from ablations import Study, main

STUDY = Study(
    name="blocks",
    question="Are bottleneck blocks better than basic ones, or only cheaper?",
    factors={"block": ("basic", "bottleneck"), "match_flops": (None, "basic"), "depth": (20, 56)},
    baseline={"block": "basic", "match_flops": None},
    on={
        "smoke": {"factors": {"depth": (20,)}, "settings": {"width": None}},
        # The paper's own match: ResNet-34 with its two-layer blocks replaced by three-layer ones is ResNet-50.
        "imagenet": {"factors": {"depth": (34, 50), "match_flops": (None,)}, "baseline": {"depth": 34}},
    },
)

if __name__ == "__main__":
    main(STUDY)
