import json

import pytest

from benchmarks.floors import FLOORS, judge, main

REPORTS = {
    "inference": {"speedup_vs_paper_sampler": 166, "ap_fast": 0.68, "ap_paper": 0.56},
    "ingest": {
        "samples_per_s_per_core": 130_000,
        "columns_samples_per_s_per_core": 600_000,
        "exactly_once_cost_per_core": 1.1,
        "peers": {"one": 15_000, "other": 60_000},
    },
    "pipeline": {"overload": {"unscored": 0}},
    "training": {"samples_per_s": 127, "plain_samples_per_s": 26, "waiting_share": 0.02, "same_weights": True},
}
WORSE = [
    ("inference", {"speedup_vs_paper_sampler": 20}),
    ("inference", {"ap_fast": 0.54}),
    ("ingest", {"samples_per_s_per_core": 50_000}),
    ("ingest", {"exactly_once_cost_per_core": 2.0}),
    ("ingest", {"columns_samples_per_s_per_core": 130_000}),
    ("pipeline", {"overload": {"unscored": 1}}),
    ("training", {"samples_per_s": 40}),
    ("training", {"waiting_share": 0.5}),
    ("training", {"same_weights": False}),
]


def test_good_reports_keep_every_floor():
    assert all(finding.kept for finding in judge(REPORTS))


@pytest.mark.parametrize(("benchmark", "changed"), WORSE, ids=[next(iter(changed)) for _, changed in WORSE])
def test_every_floor_is_broken_by_what_it_is_for(benchmark, changed, tmp_path, capsys):
    worse = REPORTS | {benchmark: REPORTS[benchmark] | changed}
    assert sum(not finding.kept for finding in judge(worse)) == 1
    found = tmp_path / "bench.json"
    found.write_text(json.dumps(worse))
    assert main(["--check", "--json", str(found)]) == 1
    assert capsys.readouterr().out.count("BROKEN") == 1


def test_there_is_a_way_to_break_each_floor():
    assert len(WORSE) == len(FLOORS)


def test_opponents_that_were_not_measured_break_nothing():
    alone = REPORTS | {"ingest": REPORTS["ingest"] | {"peers": {}}}
    assert all(finding.kept for finding in judge(alone))
    assert [finding.value for finding in judge(alone)].count(None) == 1
