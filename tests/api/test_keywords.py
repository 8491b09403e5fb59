"""Keywords of `run` and `load` are the options of the command line."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ablations.engine.api.keywords import NOT_KEYWORDS, parse_keywords
from ablations.engine.cli import options
from ablations.engine.study.definition import Study
from ablations.engine.study.expansion import make_draft
from resnet_core import ConfigError

FACTORS = {"depth": (20, 56)}
PLAIN = Study(name="plain", question="?", factors=FACTORS, baseline={"depth": 20})
SEARCH = Study(name="search", question="?", factors=FACTORS, baseline={"depth": 20}, space=lambda trial: None)


@pytest.mark.parametrize(
    ("study", "keywords", "words"),
    [
        (PLAIN, {}, []),
        (PLAIN, {"seeds": None}, []),
        (PLAIN, {"seeds": (3, 12)}, ["--seeds", "3..12"]),
        (PLAIN, {"seeds": [3, 6, 12]}, ["--seeds", "3,6,12"]),
        (PLAIN, {"seeds": "3,12"}, ["--seeds", "3,12"]),
        (PLAIN, {"preset": "smoke", "seeds": np.int64(5), "workers": 2}, ["--preset", "smoke", "--seeds", "5", "--workers", "2"]),
        (PLAIN, {"cpus_per_worker": 2, "hang_timeout": 30}, ["--cpus-per-worker", "2", "--hang-timeout", "30"]),
        (PLAIN, {"margin": 1}, ["--margin", "1"]),
        (PLAIN, {"gpus_per_worker": "auto"}, []),
        (PLAIN, {"gpus_per_worker": 0.5}, ["--gpus-per-worker", "0.5"]),
        (PLAIN, {"rerun": True, "data_download": False}, ["--rerun"]),
        (PLAIN, {"storage": Path("/data"), "probe": "responses"}, ["--storage", "/data", "--probe", "responses"]),
        (PLAIN, {"expect": ["depth matters"]}, ["--expect", "depth matters"]),
        (SEARCH, {"space": ["lr=0.1..1"], "per_cell": [], "trials": 3}, ["--space", "lr=0.1..1", "--per-cell", "--trials", "3"]),
    ],
)
def test_a_keyword_is_what_its_option_is(study: Study, keywords: dict[str, Any], words: list[str]) -> None:
    assert parse_keywords(study, keywords, training=True) == options.parse_options(study, words)


def test_every_option_that_trains_is_a_keyword() -> None:
    for action in options.make_parser(SEARCH)._actions:
        name = {"set": "settings"}.get(action.dest, action.dest)
        if action.dest in NOT_KEYWORDS:
            with pytest.raises(ConfigError, match="no such keyword"):
                parse_keywords(SEARCH, {name: 1}, training=True)
        else:
            parse_keywords(SEARCH, {name: None}, training=True)


def test_levels_and_settings_are_values_of_python() -> None:
    given = {"levels": {"depth": (20, 32), "milestones": [(0.5,), (0.3, 0.6)]}, "settings": {"optim.lr": 0.05, "width": "8"}}
    drafted = make_draft(PLAIN, parse_keywords(PLAIN, given, training=True).request)
    assert drafted.factors == {"depth": (20, 32), "milestones": ((0.5,), (0.3, 0.6))}
    assert (drafted.base.optim.lr, drafted.base.model.width) == (0.05, 8)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"seed": 5}, "seed: no such keyword; did you mean seeds"),
        ({"max-concurrent": 5}, "max-concurrent: no such keyword; did you mean max_concurrent"),
        ({"trials": 5}, "trials: no such keyword; accepted: preset, datasets, seeds"),  # this study has no search space
        ({"seeds": "five"}, "seeds=five: accepted: a number of replicates, 1 or more; a range, 3..12"),
        ({"seeds": 2.5}, "seeds=2.5: accepted: a number of replicates"),
        ({"seeds": True}, "seeds=true: accepted: a number of replicates"),
        ({"seeds": (12, 3)}, "seeds=.12, 3.: does not ascend"),
        ({"hang_timeout": "soon"}, "hang_timeout=soon: accepted: a number"),
        ({"margin": "0.5"}, "margin=0.5: accepted: a number"),
        ({"margin": 0}, "--margin=0.0: accepted: a number above 0"),
        ({"gpus_per_worker": True}, "gpus_per_worker=true: accepted: auto, 0, or 0.001 to 1"),
        ({"gpus_per_worker": 2}, "gpus_per_worker=2.0: accepted: auto, 0, or 0.001 to 1"),
        ({"rerun": 1}, "rerun=1: accepted: True or False"),
        ({"preset": 3}, "preset=3: accepted: text"),
        ({"levels": ["depth=20"]}, r"levels=\[\"depth=20\"\]: accepted: values by field"),
        ({"expect": [1]}, r"expect=\[1\]: accepted: text, or a list of texts"),
        ({"workers": 0}, "--workers=0"),
        ({"tracking_uri": " "}, "--tracking-uri"),
    ],
)
def test_a_wrong_keyword_is_a_config_error(keywords: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{message}"):
        parse_keywords(PLAIN, keywords, training=True)


def test_load_accepts_no_keyword_that_only_training_uses() -> None:
    assert parse_keywords(SEARCH, {"preset": "smoke", "search_seed": 3}, training=False).search
    assert parse_keywords(SEARCH, {"margin": 0.5}, training=False).request.margin == 0.5
    with pytest.raises(ConfigError, match="rerun: no such keyword"):
        parse_keywords(SEARCH, {"rerun": True}, training=False)
