"""Every sweep of experiments/ composes, its jobs can be built, and studies show what their results say."""

from __future__ import annotations

import csv
import importlib
import re
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import hydra
import pandas as pd
import pytest
import yaml
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict

from test_documented_commands import arguments, commands
from vmr_zoo.config.compose import config_dir, resolve_job_keys
from vmr_zoo.config.resolvers import register_resolvers
from vmr_zoo.data.worlds.shapes.world import Event, Scene
from vmr_zoo.errors import VmrError
from vmr_zoo.methods.base import Method
from vmr_zoo.methods.emb import overlap_threshold
from vmr_zoo.report.claim_tables import CLAIM_WRITERS, answers_frame
from vmr_zoo.report.escape import markdown_table
from vmr_zoo.report.query_scores import load_scores
from vmr_zoo.report.runs import scan_runs
from vmr_zoo.report.study import read_study

pytestmark = (
    pytest.mark.no_cover
)  # other tests run the same lines; composing takes twice as long when measured
EXPERIMENTS = config_dir().parent / "experiments"
NO_SWEEPS = ("cost", "claims", "claims_charades", "recipes_shapes")
"""For vmr bench, vmr report and searches: test_bench.py, test_claims.py, test_search.py."""
TABLE = EXPERIMENTS / "fidelity/switches.yaml"
SWEEPS = sorted(
    path for path in EXPERIMENTS.glob("*/*.yaml") if path.parent.name not in NO_SWEEPS and path != TABLE
)
FIDELITY = [path for path in SWEEPS if path.parent == TABLE.parent]
NOT_TRAINED = {"choices", "name", "run", "callbacks", "logger"}


def name_of(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


def load_sweep(path: Path) -> DictConfig:
    """A sweep, merged over the sweeps of its folder that its defaults name."""
    cfg = OmegaConf.load(path)
    bases = (path.with_name(f"{one}.yaml") for one in cfg.get("defaults", ()) if isinstance(one, str))
    return OmegaConf.merge(*(load_sweep(base) for base in bases if base.is_file()), cfg)


def jobs(sweep: Path, typed: Sequence[str] = ()) -> list[list[str]]:
    """The overrides of each job with the first seed, given what was typed behind the name of the sweep."""
    register_resolvers()
    cfg = load_sweep(sweep)
    params = {key: str(value) for key, value in cfg.hydra.sweeper.params.items()}
    params |= dict(text.split("=", 1) for text in typed)
    params |= {"seed": params["seed"].split(",")[0]}
    parsed = OverridesParser.create().parse_overrides([f"{key}={value}" for key, value in params.items()])
    return [list(job) for job in BasicSweeper.split_arguments(parsed, max_batch_size=None)[0]]


@pytest.fixture
def compose():
    """Composes a job as `vmr train --config-dir … --config-name …` does; returns it resolved."""
    register_resolvers()
    before = HydraConfig.instance().cfg

    def composed(sweep: Path, overrides: list[str]):
        search = create_config_search_path(str(config_dir()))
        search.prepend("command-line", f"file://{sweep.parent}")
        GlobalHydra.instance().clear()
        Hydra.create_main_hydra2("train", search)
        cfg = hydra.compose(sweep.stem, overrides, return_hydra_config=True)
        HydraConfig.instance().set_config(cfg)
        resolve_job_keys(cfg)
        with open_dict(cfg):
            del cfg["hydra"]
        OmegaConf.resolve(cfg)
        return cfg

    yield composed
    GlobalHydra.instance().clear()
    HydraConfig.instance().cfg = before


def build(node):
    """Builds a method, unless it asks for published weights that are not here."""
    try:
        assert isinstance(instantiate(node), Method)
    except InstantiationException as error:
        if not (isinstance(error.__cause__, VmrError) and "Download it" in str(error.__cause__)):
            raise


def documented_sweeps():
    """The sweeps on any page that have overrides, with these; searches have no list of jobs."""
    found = []
    for command in commands():
        verb, *args = arguments(command)
        if verb != "train" or "--config-dir" not in args or "$" in command:
            continue
        folder, name = (args[args.index(option) + 1] for option in ("--config-dir", "--config-name"))
        sweep = EXPERIMENTS.parent / folder / f"{name}.yaml"
        typed = [one for one in args if "=" in one and not one.startswith("hydra.") and "…" not in one]
        if typed and re.search(r"^ +seed:", sweep.read_text(encoding="utf-8"), re.M):
            found.append(pytest.param(sweep, typed, id=command))
    return found


@pytest.mark.parametrize(("sweep", "typed"), documented_sweeps())
def test_a_documented_sweep_composes(sweep, typed, compose):
    first, *others = jobs(sweep, typed)
    for job in (first, *others[-1:]):
        assert Path(compose(sweep, job).run).is_relative_to("runs")


@pytest.mark.parametrize("sweep", SWEEPS, ids=name_of)
def test_a_sweep_composes(sweep, compose):
    cfg = compose(sweep, jobs(sweep)[0])
    assert Path(cfg.run).is_relative_to("runs")
    build(cfg.method)


@pytest.mark.slow
@pytest.mark.parametrize("sweep", SWEEPS, ids=name_of)
def test_every_job_of_a_sweep_builds_and_has_a_directory_of_its_own(sweep, compose):
    runs = set()
    for job in jobs(sweep):
        cfg = compose(sweep, job)
        build(cfg.method)
        runs.add(cfg.run)
    assert len(runs) == len(jobs(sweep))


@pytest.mark.slow
@pytest.mark.parametrize("sweep", FIDELITY, ids=lambda path: path.stem)
def test_every_switch_changes_what_is_trained(sweep, compose):
    def trained(overrides):
        cfg = OmegaConf.to_container(compose(sweep, overrides))
        return {key: value for key, value in cfg.items() if key not in NOT_TRAINED}

    full, *switched = map(trained, jobs(sweep))
    assert len(switched) >= 2
    for number, cfg in enumerate(switched, 1):
        assert cfg != full, jobs(sweep)[number]


def test_every_switch_is_in_a_sweep():
    table = OmegaConf.load(TABLE).switches
    rows = {f"{group}/{row}" for group, values in table.items() for row in values}
    swept = {job.partition("=")[2] for sweep in FIDELITY for one in jobs(sweep) for job in one}
    assert rows <= swept


@pytest.mark.parametrize("sweep", FIDELITY, ids=lambda path: path.stem)
def test_the_page_counts_the_settings_of_a_sweep(sweep):
    page = (EXPERIMENTS / "fidelity" / "README.md").read_text(encoding="utf-8")
    assert f"| `{sweep.stem}` | {len(jobs(sweep))} |" in page


def test_a_switch_names_the_run_and_an_unknown_one_is_refused(compose):
    sweep = EXPERIMENTS / "fidelity/moment_detr.yaml"
    cfg = compose(sweep, ["data=shapes", "method=moment_detr", "switch=moment_detr/margin_pairs"])
    assert cfg.method.margin_pairs == "rated"
    assert "moment_detr-paper+margin_pairs/" in cfg.run
    assert cfg.choices.ablation == "fidelity/moment_detr/margin_pairs"
    assert "switches" not in cfg
    with pytest.raises(VmrError, match="moment_detr/margin_pairs"):
        compose(sweep, ["method=moment_detr", "switch=moment_detr/margin_pair"])
    with pytest.raises(VmrError, match=r"network\.order"):
        compose(sweep, ["method=moment_detr", "switch=emb/order"])


def test_a_narrator_that_errs_has_features_of_its_own(compose):
    sweep = EXPERIMENTS / "interventions/narrator.yaml"
    cfg = compose(sweep, ["data=shapes", "method=tea", "narrator_error=0.25"])
    narrator = instantiate(cfg.features.narration.narrator)
    assert (narrator.miss, narrator.confuse, narrator.hallucinate) == (0.25, 0.25, 0.25)
    assert cfg.data.features.name == "shapes_narrator_error_0.25"
    assert "shapes-shapes_narrator_error_0.25/tea-paper+narrator_error-0.25" in cfg.run


@pytest.mark.parametrize("study", ["ood_shapes", "ood_charades", "interventions", "fidelity", "boundary"])
def test_a_study_shows_what_its_results_say(study, monkeypatch):
    monkeypatch.syspath_prepend(EXPERIMENTS)
    folder = EXPERIMENTS / study
    readme = (folder / "README.md").read_text(encoding="utf-8")
    tables = read_study(folder / "results.csv")
    shown = [
        f"<!-- table: {table.title.partition(', not computed here: ')[2]} -->\n\n{table.markdown()}\n"
        for table in tables
    ]
    collect = importlib.import_module("collect")
    if study in collect.FRONT:
        assert shown[0] in (EXPERIMENTS.parent / "README.md").read_text(encoding="utf-8")
    for table in shown:
        assert table in readme, f"python experiments/collect.py {study} updates README.md"
    with (folder / "results.csv").open(encoding="utf-8") as file:
        rows = {
            (row["protocol"], row["features"], row["name"], row["seed"]): row for row in csv.DictReader(file)
        }
    runs, unfinished = scan_runs(folder / "runs")
    assert not unfinished
    asked: dict[str, pd.Index] = {}
    for run in runs:
        row = rows[*(str(run.header[key]) for key in ("protocol", "features", "name", "seed"))]
        _, scores = load_scores(run, list(run.metrics), ["R1@0.5"])  # refuses scores of another run
        assert scores
        if "weights" in row:
            assert row["weights"] == (run.header.get("weights_sha256") or "")[: collect.DIGITS]
        for split, values in run.metrics.items():
            assert row[f"{split} R1@0.5"] == f"{values['R1@0.5']:.4f}"
        for split, frame in scores.items():  # one sample of queries for all rows
            assert frame.index.equals(asked.setdefault(f"{run.header['protocol']} {split}", frame.index))


@pytest.mark.parametrize("study", ["ood_shapes", "ood_charades", "interventions", "fidelity", "boundary"])
def test_the_command_of_a_row_trains_it(study, monkeypatch, compose):
    monkeypatch.syspath_prepend(EXPERIMENTS)
    rows = importlib.import_module("collect").read_results(study)
    commands = {row["command"].rpartition("seed=")[0]: row for row in rows if row["command"]}
    for row in commands.values():
        config, overrides = "train", shlex.split(row["command"])
        if overrides[0] == "--config-name":
            _, config, *overrides = overrides
        cfg = compose(EXPERIMENTS / study / config, overrides)
        assert (cfg.name, cfg.data.features.name) == (row["name"], row["features"])
        assert str(cfg.seed) == row["seed"]


def test_a_command_has_nothing_of_the_machine(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(EXPERIMENTS)
    collect = importlib.import_module("collect")
    run = SimpleNamespace(directory=tmp_path)
    assert collect._command(run) == ""
    typed = [
        "run=/a/b",
        "+resume=true",
        "~logger",
        "logger.wandb.project=p",
        "paths.runs=/c",
        "seed=1",
        "x={a: 1}",
    ]
    session = {"config": "weak", "overrides": [*typed, "hydra.launcher.n_jobs=2"]}
    (tmp_path / "overrides.yaml").write_text(yaml.safe_dump([session, session]))
    assert collect._command(run) == "--config-name weak seed=1 'x={a: 1}'"
    (tmp_path / "overrides.yaml").write_text(
        yaml.safe_dump([session, session | {"raised": {"from": 1, "to": 2}}])
    )
    assert collect._command(run) == ""


def test_rows_are_drawn_whatever_is_added_to_the_study(monkeypatch):
    monkeypatch.syspath_prepend(EXPERIMENTS)
    reproduce = importlib.import_module("reproduce")
    row = {"protocol": "shapes", "features": "shapes", "steps": "9", "command": "method=a", "seed": "0"}
    rows = [row | {"name": str(number)} for number in range(20)]
    untrained = [row | {"name": "b", "steps": "0"}, row | {"name": "c", "command": ""}]
    study = {"study": [*rows[:10], *untrained]}
    monkeypatch.setattr(reproduce, "read_results", study.get)
    drawn = reproduce.draw_rows("study", 10, 0)
    assert sorted(drawn, key=rows.index) == rows[:10]
    assert drawn not in (rows[:10], reproduce.draw_rows("study", 10, 1))
    with pytest.raises(ValueError, match=r"found 10 rows .* not 11"):
        reproduce.draw_rows("study", 11, 0)
    study["study"] = rows
    assert [row for row in reproduce.draw_rows("study", 20, 0) if row in rows[:10]] == drawn


def test_a_row_is_the_same_or_says_what_differs(monkeypatch):
    monkeypatch.syspath_prepend(EXPERIMENTS)
    reproduce = importlib.import_module("reproduce")
    row = {"name": "a", "seed": "0", "revision": "old", "weights": "0f", "iid mIoU": "1.0000", "torch": "2"}
    again = row | {"revision": "new", "train_seconds": "5", "other iid R1@0.5": "2.00"}
    assert reproduce.differences(row, again) == []
    assert reproduce.describe(row, again, []) == "a, seed 0, of old, at new: the same, weights 0f"
    changed = again | {"weights": "1f", "torch": "3"}
    del changed["iid mIoU"]
    found = ["weights 0f -> 1f", "iid mIoU 1.0000 -> nothing"]
    assert reproduce.differences(row, changed) == found
    assert "trained elsewhere (torch 2 -> 3)" in reproduce.describe(row, changed, found)


def test_the_searches_show_what_their_results_say(monkeypatch):
    monkeypatch.syspath_prepend(EXPERIMENTS)
    searches = importlib.import_module("searches")
    readme = (EXPERIMENTS / "recipes_shapes" / "README.md").read_text(encoding="utf-8")
    assert searches.table(searches.stored_searches()) in readme


def test_a_switch_is_worth_its_difference_to_the_mean_of_the_default(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(EXPERIMENTS)
    collect, worth = map(importlib.import_module, ("collect", "worth"))

    def row(name, seed, score, plateau="True"):
        scores = {f"{split} R1@0.5": str(score) for split in worth.SPLITS}
        return {"name": name, "features": "shapes", "seed": seed, "plateau": plateau} | scores

    stored = {
        "ood_shapes": [
            row("tea-paper", "0", 70),
            row("tea-paper", "1", 60),
            row("emb-paper", "0", 10),
            row("vdi-paper", "0", 40),
            row("vdi-paper", "1", 40),
        ],
        "fidelity": [
            row("tea-paper+gate", "0", 71),
            row("tea-paper+gate", "1", 63),
            row("tea-paper+unit", "0", 50, "False"),
            row("emb-paper+order", "2", 12),
            row("mmn-paper+order", "2", 99),  # has no default
        ],
    }
    monkeypatch.setattr(worth, "read_results", stored.get)
    (_, alone), (method, table) = worth.tables().items()
    # A single seed on both sides: the root of twice 32, the median of 50 (TEA), 32 (its gate) and 0 (VDI).
    assert "| +2.0 ± 8.0 |" in alone
    assert method == "tea"
    cells = [[cell.strip() for cell in line.split("|")[1:4]] for line in table.splitlines()]
    assert cells[0] == ["tea", "n", "iid"]
    # Deviations over seeds: 7.1 of 60 and 70, 6.4 with 63 and 71; times the root of 1 + 1/2 and 1/2 + 1/2.
    assert cells[2:] == [["unit†", "1", "-15.0 ± 8.7"], ["gate", "2", "+2.0 ± 6.4"]]
    page = tmp_path / "README.md"
    page.write_text(f"text\n\n{table}\n")
    with pytest.raises(SystemExit, match=r"lacks a place for 1 of 1 tables\. Add:\n<!-- table: tea -->"):
        collect.update_own_page(page, {"tea": table})
    page.write_text("<!-- table: emb -->\n\n| kept |\n\n<!-- table: tea -->\n\nmore\n")
    for _ in range(2):
        collect.update_own_page(page, {"tea": table})
        assert (
            page.read_text() == f"<!-- table: emb -->\n\n| kept |\n\n<!-- table: tea -->\n\n{table}\n\nmore\n"
        )


def test_who_acts_is_shown(monkeypatch):
    monkeypatch.syspath_prepend(EXPERIMENTS)
    who_acts = importlib.import_module("who_acts")
    shown = who_acts.table([EXPERIMENTS / "ood_shapes" / "runs"])
    shown = f"<!-- table: who acts -->\n\n{shown}\n"
    assert shown in (EXPERIMENTS / "ood_shapes" / "README.md").read_text(encoding="utf-8")


def test_novel_words_are_shown_and_the_claims_about_them_list_their_queries(monkeypatch):
    monkeypatch.syspath_prepend(EXPERIMENTS)
    novel_words = importlib.import_module("novel_words")
    pairs = novel_words.counterparts()
    shown = (
        f"<!-- table: novel words -->\n\n{novel_words.table(pairs, [EXPERIMENTS / 'ood_shapes' / 'runs'])}\n"
    )
    assert shown in (EXPERIMENTS / "ood_shapes" / "README.md").read_text(encoding="utf-8")
    for name, kinds in novel_words.LISTS.items():
        listed = (EXPERIMENTS / "claims" / name).read_text(encoding="utf-8").split()
        assert listed == sorted(query for kind in kinds for pair in pairs[kind] for query in pair)


def test_the_chance_is_the_share_of_events_that_answer(monkeypatch):
    monkeypatch.syspath_prepend(EXPERIMENTS)
    who_acts = importlib.import_module("who_acts")
    events = (Event(0, "grow", 0.0, 4.0, ()), Event(1, "grow", 5.0, 9.0, ()), Event(2, "spin", 5.0, 9.0, ()))
    scene = Scene("test_0", 10, (), events, ())
    assert who_acts._chance(scene, "grow", [[0.0, 4.0]]) == 0.5
    assert who_acts._chance(scene, "grow", [[0.0, 4.0], [5.0, 9.0]]) == 1.0
    assert who_acts._chance(scene, "spin", [[5.0, 9.0]]) == 1.0
    at_once = replace(scene, events=(events[0], replace(events[1], start=0.5, end=4.0)))
    assert who_acts._chance(at_once, "grow", [[0.0, 4.0]]) == 1.0


def test_what_each_switch_is_worth_is_shown(monkeypatch):
    monkeypatch.syspath_prepend(EXPERIMENTS)
    readme = (EXPERIMENTS / "fidelity" / "README.md").read_text(encoding="utf-8")
    tables = importlib.import_module("worth").tables()
    assert tables
    for method, table in tables.items():
        assert f"<!-- table: {method} -->\n\n{table}\n" in readme


@pytest.mark.parametrize("claims", ["claims", "claims_charades"])
def test_the_verdicts_shown_are_those_of_the_stored_runs(monkeypatch, claims):
    monkeypatch.syspath_prepend(EXPERIMENTS)
    verdicts = importlib.import_module("verdicts")
    answers = verdicts.stored_answers(claims)
    readme = " ".join((EXPERIMENTS / claims / "README.md").read_text(encoding="utf-8").split())
    rows = [line for line in CLAIM_WRITERS["markdown"](answers).splitlines() if line.startswith("|")]
    assert len(rows) == 2 + len(answers)
    assert [row for row in rows[2:] if " ".join(row.split()) not in readme] == []
    front = (EXPERIMENTS.parent / "README.md").read_text(encoding="utf-8").splitlines()
    for one in answers_frame(answers).to_dict("records"):
        row = (one["paper"], one["claim"], verdicts.short_effect(one), one["verdict"])
        assert markdown_table(row, []).splitlines()[0] in front


def test_the_elastic_boundary_acted_before_the_weights_of_stored_runs():
    """A run whose best epoch comes before any moment can be widened is one without candidate sets."""
    found = {}
    for study in ("ood_shapes", "ood_charades", "interventions"):
        for run in scan_runs(EXPERIMENTS / study / "runs")[0]:
            if run.header["method"] in ("emb", "tea"):
                falls = yaml.safe_load((run.path / "config.yaml").read_text())["method"]["boundary"]
                progress = (run.header["best_epoch"] - 1) / falls["theta_epochs"]
                found[run.path.relative_to(EXPERIMENTS).as_posix()] = overlap_threshold(progress)
    assert len(found) > 20
    early = {run for run, theta in found.items() if theta > 0.9}
    blind = "interventions/runs/shapes-shapes_blind_both/emb-paper"
    charades = {run for run in found if run.startswith("ood_charades")}
    charades -= {"ood_charades/runs/charades_cg-action_labels/tea-paper/seed3"}
    assert early == {f"{blind}/seed1", f"{blind}/seed2", *charades}  # as docs/methods/emb.md says


def test_simulated_reports_are_rarely_wrong_and_find_effects(monkeypatch):
    monkeypatch.syspath_prepend(EXPERIMENTS)
    errors = importlib.import_module("verdict_errors")
    monkeypatch.setattr(errors, "REPORTS", 60)
    monkeypatch.setattr(errors, "SIZES", ((12, 4),))
    monkeypatch.setattr(errors, "ERRORS", (0.3,))
    wrong, found = errors.percentages(errors.WORLDS[0], 3)
    assert int(wrong.split()[0]) < 12
    assert int(found.split()[0]) > 80


def test_the_times_of_training_moments_answer_little(monkeypatch, capsys):
    monkeypatch.syspath_prepend(EXPERIMENTS / "ood_shapes")
    prior = importlib.import_module("time_prior")
    rows = [
        {"moments": [[0.0, 8.0]], "duration": 20.0, "clauses": [{"action": "grow"}]},
        {"moments": [[12.0, 20.0]], "duration": 20.0, "clauses": [{"action": "shrink"}]},
    ]
    monkeypatch.setattr(prior, "annotate", lambda world: {"train": rows, "iid": rows, "ood_time": rows[::-1]})
    prior.main()
    assert capsys.readouterr().out.splitlines() == [
        f"{split}: one constant answer 50.0, one answer per action 100.0" for split in ("iid", "ood_time")
    ]
