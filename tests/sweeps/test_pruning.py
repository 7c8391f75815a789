"""Trials that are ended early."""

import json
from pathlib import Path
from types import SimpleNamespace

import optuna
import pytest
from hydra import compose, initialize_config_dir
from optuna.trial import TrialState, create_trial

from cocoseg.budget.budget import Budget
from cocoseg.budget.open_run import Run
from cocoseg.cli import resolve_config
from cocoseg.config import Config, SweepConfig
from cocoseg.inference.model import load_model
from cocoseg.run_folder import PRUNED, Outcome
from cocoseg.sweeps.pruning import STARTUP_TRIALS, TENTHS, PruneTrial
from cocoseg.sweeps.study import open_storage
from cocoseg.training.recipe import train
from conftest import ROOT
from tiny import TINY_RUN


@pytest.fixture
def study(tmp_path: Path) -> optuna.Study:
    """Finished trials that were at 0.1 … 0.9 after as many tenths, and one that is running."""
    study = optuna.create_study(
        storage=open_storage(tmp_path), study_name=tmp_path.name, direction="maximize"
    )
    for _ in range(STARTUP_TRIALS):
        values = {tenth: tenth / 10 for tenth in range(1, TENTHS)}
        study.add_trial(create_trial(state=TrialState.COMPLETE, value=1.0, intermediate_values=values))
    study.ask()
    return study


class Trial:
    """Validations of the running trial."""

    def __init__(self, folder: Path, **settings):
        self.budget = Budget(None)
        settings = {"method": "tpe", "pruner": "median", "trial": STARTUP_TRIALS, **settings}
        self.prune = PruneTrial(SweepConfig(**settings), folder, self.budget)
        self.trainer = SimpleNamespace(sanity_checking=False, should_stop=False)

    def validate(self, progress: float, miou: float, *, partial: bool = False) -> bool:
        """Tell whether the trial is to end."""
        self.budget.progress = progress
        module = SimpleNamespace(scores=SimpleNamespace(miou=miou), scores_are_partial=partial)
        self.prune.on_validation_end(self.trainer, module)
        return self.trainer.should_stop


def reported(study: optuna.Study) -> dict[int, float]:
    return study.trials[STARTUP_TRIALS].intermediate_values


def test_a_poor_trial_is_ended(study: optuna.Study, tmp_path: Path):
    trial = Trial(tmp_path)
    assert not trial.validate(0.45, 0.5)
    assert trial.validate(0.65, 0.55)
    assert trial.prune.reason == "mIoU 0.550 at 65%, by sweep.pruner=median"


def test_a_good_trial_goes_on(study: optuna.Study, tmp_path: Path):
    trial = Trial(tmp_path)
    assert not any(trial.validate(tenth / 10 + 0.01, tenth / 10) for tenth in range(1, 11))
    assert trial.prune.reason == ""


def test_neither_the_first_nor_the_last_tenths_are_judged(study: optuna.Study, tmp_path: Path):
    trial = Trial(tmp_path)
    assert not trial.validate(0.11, 0.0)
    assert not trial.validate(0.21, 0.0)
    assert trial.validate(0.31, 0.0)
    assert Trial(tmp_path).validate(0.71, 0.1)
    late = Trial(tmp_path)
    assert not late.validate(0.8, 0.1)
    assert not late.validate(0.95, 0.1)
    assert reported(study)[9] == 0.1


def test_tenths_without_a_validation_have_the_best_before(study: optuna.Study, tmp_path: Path):
    trial = Trial(tmp_path)
    trial.validate(0.21, 0.5)
    trial.validate(0.25, 0.7)
    trial.validate(0.51, 0.6)
    assert reported(study) == {1: 0.0, 2: 0.5, 3: 0.7, 4: 0.7, 5: 0.7}


def test_a_resumed_trial_reports_on(study: optuna.Study, tmp_path: Path):
    Trial(tmp_path).validate(0.41, 0.5)
    Trial(tmp_path).validate(0.61, 0.4)
    assert reported(study) == {1: 0.0, 2: 0.0, 3: 0.0, 4: 0.5, 5: 0.5, 6: 0.5}


@pytest.mark.parametrize("settings", [{"trial": None}, {"pruner": "none"}])
def test_runs_that_are_not_pruned(study: optuna.Study, tmp_path: Path, settings):
    assert not Trial(tmp_path, **settings).validate(0.9, 0.0)
    assert reported(study) == {}


def ask_and_report(folder: Path, pruner: str, name: str, values: list[float]) -> list[int]:
    """Number of steps of each of several trials, asked for by one process and reported by another.

    Trial n has the score `values[n]` at each of its validations, one per tenth of its progress.
    """
    study = optuna.create_study(storage=open_storage(folder), study_name=name, direction="maximize")
    steps = []
    for number, value in enumerate(values):
        assert study.ask().number == number
        trial = Trial(folder, trial=number, pruner=pruner, name=name)
        ended = next((t for t in range(1, TENTHS) if trial.validate(t / TENTHS + 0.01, value)), TENTHS)
        steps.append(ended)
        state = TrialState.COMPLETE if ended == TENTHS else TrialState.PRUNED
        study.tell(number, value if ended == TENTHS else None, state)
    return steps


def test_halving_prunes_at_its_rungs(tmp_path: Path):
    """After two and six tenths a trial must be among the best third of those that came so far.

    The first one always is; of six trials (0.65) two are; of the four at six tenths only one.
    """
    steps = ask_and_report(tmp_path, "halving", "x", [0.5, 0.4, 0.6, 0.55, 0.7, 0.65, 0.1])
    assert steps == [10, 2, 10, 2, 10, 6, 2]


def test_hyperband_has_trials_that_are_not_judged_early(tmp_path: Path):
    """Each of falling scores is the worst so far: pruned at 2 tenths in one bracket, at 6 in the other."""
    steps = ask_and_report(tmp_path, "hyperband", "x", [0.5 - number / 100 for number in range(12)])
    assert {2, 6, 10} == set(steps)
    assert steps.count(10) == 2  # the first one of each bracket


def test_scores_of_a_part_are_not_reported(study: optuna.Study, tmp_path: Path):
    assert not Trial(tmp_path).validate(0.9, 0.0, partial=True)
    assert reported(study) == {}


def test_a_storage_that_does_not_answer_ends_no_training(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    trial = Trial(tmp_path)  # there is no such study
    assert not trial.validate(0.5, 0.0)
    assert not trial.validate(0.6, 0.0)
    assert sum("this trial can't be pruned" in record.message for record in caplog.records) == 1


@pytest.mark.slow
def test_a_pruned_trial_exports_its_model(study: optuna.Study, shapes_root: Path, tmp_path: Path):
    places = (
        f"data.root={shapes_root}",
        f"data.images={shapes_root}/images",
        f"data.annotations={shapes_root}/annotations/instances.json",
        f"data.prepared_dir={tmp_path}/prepared",
        "data=shapes",
        "data.shapes=null",
    )
    sweep = ("sweep=tpe", f"sweep.trial={STARTUP_TRIALS}", f"sweep.name={tmp_path.name}")
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        composed = compose("train", [*places, *sweep, *TINY_RUN, "trainer.max_epochs=10"])
    run_dir = tmp_path / str(STARTUP_TRIALS)

    train(resolve_config(composed, Config), Run(run_dir))

    outcome = Outcome.read(run_dir)
    assert outcome.state == PRUNED
    assert outcome.reason.endswith("by sweep.pruner=median")
    assert outcome.epochs < 10
    assert outcome.miou == json.loads((run_dir / "metrics.json").read_bytes())["miou"]
    assert load_model(run_dir / "segmentation_model.pth").scores["miou"] == outcome.miou
