"""Every benchmark runs at a tiny scale, and its result is whole. How fast anything is, is not asked here."""

import io

import msgspec
import pytest
import redis
from rich.console import Console

from benchmarks import archive, growth, inference, ingest, pipeline
from benchmarks.rig import make_rig
from benchmarks.workload import FEW_NUMERIC, make_family
from deploy.demo_view import DemoView
from deploy.servers import running_servers
from stream.kafka import make_admin
from stream.topics import ALL, topic_name
from tests.pipeline import wait_for


@pytest.fixture
def console():
    return Console(file=io.StringIO())


@pytest.fixture
def _servers(monkeypatch, kafka_bootstrap, redis_url):
    monkeypatch.setenv("TELLTALE_KAFKA__BOOTSTRAP", kafka_bootstrap)
    monkeypatch.setenv("TELLTALE_REDIS__URL", redis_url)


def written(report):
    return msgspec.json.decode(msgspec.json.encode(report))


def check_spreads(spreads, count):
    for spread in spreads:
        assert 0 < spread["least"] <= spread["median"] <= spread["most"]
        assert spread["count"] == count


@pytest.mark.usefixtures("_servers")
def test_ingest_reports_all_its_figures(console):
    report = written(ingest.run(console, ingest.Load(entities=16, rows=4096, runs=1, columns_runs=1)))
    check_spreads(report["spreads"].values(), 1)
    assert report["samples_per_s"] == report["spreads"]["samples_per_s"]["median"]
    assert report["samples_per_s_per_core"] == report["spreads"]["samples_per_s_per_core"]["median"]
    assert 0 < report["commit_ms_p50"] <= report["commit_ms_p99"]
    ratio = report["at_least_once_samples_per_s"] / report["samples_per_s"]
    assert report["exactly_once_cost"] == pytest.approx(ratio, abs=0.02)
    assert report["exactly_once_cost_per_core"] > 0
    assert report["memory_mib"] > 1
    assert (report["entities"], report["channels"], report["rows"]) == (16, 25, 16 * 4096)
    assert sum(report["time_shares"].values()) == pytest.approx(1, abs=0.02)
    assert report["peers"].keys() == report["peers_samples_per_s"].keys()
    assert bool(report["peers"]) != bool(report["peers_note"])


@pytest.mark.usefixtures("_servers")
def test_growth_reports_all_its_figures(console):
    report = written(growth.run(console, growth.Load(entities=(10, 200), partitions=(2,), rows=160_000)))
    assert [one["entities"] for one in report["by_entities"]] == [10, 200]
    assert [(one["partitions"], one["windowers"]) for one in report["by_partitions"]] == [(2, 1), (2, 2)]
    for one in report["by_entities"] + report["by_partitions"]:
        assert one["rows"] == 160_000
        assert min(one["samples_per_s"], one["samples_per_s_per_core"], one["memory_mib"]) > 1


@pytest.mark.usefixtures("_servers")
def test_pipeline_reports_all_its_figures(console):
    load = pipeline.Load(
        entities=16,
        worker_rows=4096,
        rows=4096,
        seconds=5,
        latency_seconds=3,
        overload_seconds=3,
        parts=2,
        spike_every=128,
        batch_windows=8,
        threads=1,
    )
    report = written(pipeline.run(console, load))
    check_spreads(report["spreads"].values(), 2)
    assert report["rows_per_s"] == report["spreads"]["rows_per_s"]["median"]
    assert report["latency_alerts"] > 0
    assert 0 < report["latency_ms_p50"] <= report["latency_ms_p99"] <= report["latency_ms_max"]
    assert report["latency_rows_per_s"] > 0
    assert report["overload"]["unscored"] == 0
    assert report["overload"]["latency_ms_max"] > 0
    for memory in (report["memory_mib"], report["idle_memory_mib"]):
        assert {"windower", "worker"} <= set(memory)
        assert all(mib > 1 for mib in memory.values())


def test_inference_reports_all_its_figures(console):
    load = inference.Load(minutes=0.05, rows=4000, repeats=2, paper_windows=2)
    report = written(inference.run(console, load))
    assert {"rows_per_s", "rows_per_s_one_start", "rows_per_s_live", "speedup_vs_paper_sampler"} <= report.keys()
    assert all(report[name] > 0 for name in report if name.startswith(("rows_per_s", "values_per_s", "l1_")))
    assert report["speedup_vs_paper_sampler"] > 1
    assert report["cases"]
    for one in report["operations"]:
        assert sum(one["shares"].values()) == pytest.approx(1, abs=0.02)


@pytest.mark.usefixtures("_servers")
def test_a_rig_leaves_no_topic_and_no_key_behind(console):
    with running_servers(DemoView(console)) as servers, make_rig(servers, make_family(FEW_NUMERIC, 1024)) as rig:
        settings = rig.settings
        client = redis.Redis.from_url(servers.redis_url)
        client.set(f"{{{settings.redis.prefix}:0}}:epoch", 1)
        ours = {topic_name(settings.topics, topic) for topic in ALL}
        assert ours <= set(make_admin(settings.kafka).list_topics(timeout=10).topics)
    assert not list(client.scan_iter(match=f"*{settings.redis.prefix}*"))
    admin = make_admin(settings.kafka)
    wait_for(lambda: not ours & set(admin.list_topics(timeout=10).topics), "the broker to forget the topics", 30)
    assert not rig.folder.exists()
    client.close()


def test_the_archive_benchmark_measures_all_that_it_says(console):
    report = written(archive.run(console, rows=2000, runs=2))
    assert set(report["spreads"]) == {"json", "columns", "merged", "read"}
    check_spreads(report["spreads"].values(), 2)
    assert report["rows"] >= 2000
    assert 0 < report["bytes_per_row"] < 4 * report["channels"] + 40
