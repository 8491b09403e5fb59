"""A study that is killed again and again, at drawn moments and by drawn means, until it is done: what is lost or doubled?"""

import argparse
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path

import ray

from benchmarks import record
from benchmarks.reliability.kills import ANY, MEANS, MOMENTS
from benchmarks.reliability.soak import EPOCHS, Soak


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--kills", type=int, default=60, metavar="N", help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of what is drawn (default: %(default)s)")


def main() -> None:
    """Kills, prints and writes; exits 1 if anything was lost or doubled."""
    given = record.options(__file__, __doc__, rounds=2, extra=add_options)
    scratch = Path(tempfile.mkdtemp(prefix="reliability-"))
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    soak = Soak(scratch, given.extra.seed)
    expected = soak.undisturbed()
    for _ in range(given.rounds - 1):
        again = soak.undisturbed()
        assert again == expected, (again.lost(expected), again.doubled(expected))
    while len(soak.kills) < given.extra.kills:
        soak.disturbed(expected, given.extra.kills - len(soak.kills))
    series = [
        record.Series("lost, doubled or left, per study", "", list(map(float, soak.wrong)), "0"),
        record.Series("submission that nobody kills", "s", soak.undisturbed_seconds),
        record.Series("resubmission to its first new epoch", "s", soak.resumed_seconds),
        record.Series("request to stop to the end of the process", "s", soak.stopped_seconds, "≤ 3"),
    ]
    counts = Counter((kill.means, kill.moment) for kill in soak.kills)
    moments = (ANY, *MOMENTS)
    rows = [[means, *(str(counts[means, moment]) for moment in moments)] for means in MEANS]
    kills = record.Breakdown("Kills, by means and moment", ["", *moments], rows)
    settings = {
        "seed": soak.seed,
        "kills": len(soak.kills),
        "submissions": soak.submissions,
        "runs": 2 * soak.seeds,
        "epochs": EPOCHS,
    }
    settings |= {"submissions that printed a traceback": soak.tracebacks}
    record.publish(record.Result("reliability", settings, series, [kills]), given)
    ray.shutdown()
    if any(soak.wrong):
        sys.exit(1)
    shutil.rmtree(scratch)


if __name__ == "__main__":
    main()
