"""Shortcut options A, B and C, and none (He et al. 2015, table 3; section 4.1).

ray job submit -- python ablations/shortcuts.py
"""

from ablations.engine.cli import main
from ablations.engine.study import Study

STUDY = Study(
    name="shortcuts",
    question="Which shortcut helps a residual network, and by how much?",
    factors={"shortcut": ("none", "A", "B", "C"), "depth": (20, 56)},
    baseline={"shortcut": "A"},
    on={"smoke": {"factors": {"depth": (8, 14)}}, "imagenet": {"factors": {"depth": (34,)}}},
)

if __name__ == "__main__":
    main(STUDY)
