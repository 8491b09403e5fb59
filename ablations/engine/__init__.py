"""The engine behind `ablations`. Its packages, in the order in which they may import one another:

`environment`, `study`, then `search`, `trial` and `analysis`, then `scheduling` and `tracking`, then `report` and `cluster`, then
`submission` and `cli`.
"""

import os

# Ray reads these as it is imported, which any module below may do.
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")  # no result files for each trial: MLflow has the results
os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "3600")  # no snapshots of Tune's state every few seconds
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
