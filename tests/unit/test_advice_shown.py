"""What the planner's pictures show, in words."""

import numpy as np
import pandas as pd

from edge_eval_lib.results import advice_shown

NAN = np.nan


def test_the_cheapest_deployment_changes_with_the_load():
    loads = np.array([10.0, 100.0, 1000.0, 10000.0])
    usd = {
        "on premises": np.array([90.0, 9.0, 0.9, 0.1]),
        "API": np.array([2.0, 2.0, 2.0, 2.0]),
    }
    said = advice_shown.load_words(loads, usd)
    assert said == "Cheapest, by load: API; on premises from 1000 requests a day on."
    none = advice_shown.load_words(loads, {"API": np.array([2.0, 2.0, NAN, NAN])})
    assert none == "Cheapest, by load: API; none fits from 1000 requests a day on."


def test_speed_is_said_by_its_ends():
    speeds = pd.DataFrame(
        {
            "concurrency": [1, 8, 64],
            "tok_s_per_request": [139.0, 130.0, 87.0],
            "usd_per_million_tokens": [0.25, 0.03, 0.0031],
        }
    )
    said = advice_shown.speed_words(speeds)
    assert said.startswith("1 at once: 140 tokens a second each, 0.25 USD per million; 64 at once")
    assert "of one's own" in advice_shown.speed_words(speeds[:0])


def test_each_option_is_said_with_its_range_and_its_largest_part():
    row = dict.fromkeys([f"{part}_usd_per_month" for part in advice_shown.PARTS], 0.0)
    row |= {"family": "llama", "size": "1B", "method": "lora", "precision": "int4"}
    row |= {"deployment": "on premises", "usd_per_request": 2.8e-4, "people_usd_per_month": 9.0}
    row |= {"usd_per_request_least": 1.2e-4, "usd_per_request_most": 9.3e-4}
    said = advice_shown.cost_words(pd.DataFrame([row]))
    assert "0.28 USD (0.12 to 0.93), most of it people, every month" in said


def test_inputs_that_flip_the_choice_are_said_with_their_part():
    able = pd.DataFrame({"input": ["pue"], "total_order": [0.58]})
    assert "58 %" in advice_shown.flips_words(able)
    assert advice_shown.flips_words(able[:0]) == "No input flips the choice."


def test_standby_is_counted_by_the_thousand():
    table = pd.DataFrame({"way": ["keep warm"], "standby_usd": [5e-6], "standby_tax": [63.4]})
    shown = advice_shown.standby_for_people(table)
    assert shown["standby [USD per 1,000]"].tolist() == [5e-3]
    assert advice_shown.standby_for_people(pd.DataFrame()).empty
