"""A run knows whether its selection metric stopped improving, and stops there on request."""

import json

import pytest

STILL = "method.training.optimizer.lr=1.0e-30"  # nothing improves after the first epoch
STOPS = ["callbacks.plateau.stops=true", "callbacks.plateau.patience=2"]


@pytest.mark.parametrize(
    ("overrides", "epochs", "plateau"),
    [
        ([STILL, *STOPS, "trainer.max_epochs=9"], 3, True),
        ([STILL, "callbacks.plateau.patience=2", "trainer.max_epochs=4"], 4, True),
        ([STILL, *STOPS, "trainer.max_epochs=2"], 2, False),
    ],
    ids=["stops", "only records", "still rising"],
)
def test_a_run_records_whether_it_reached_its_plateau(train_toy, overrides, epochs, plateau):
    code, run = train_toy(*overrides)
    header = json.loads((run / "metrics.json").read_text())["header"]
    assert code == 0
    assert (header["epochs"], header["plateau"], header["patience"]) == (epochs, plateau, 2)
    assert header["steps"] == 3 * epochs
    assert header["train_cpu_seconds"] > 0


def test_an_interruption_does_not_start_the_count_again(train_toy):
    stop = ["+callbacks.stop._target_=toy.At", "+callbacks.stop.step=6", "+callbacks.stop.signal=15"]
    plateau = [STILL, *STOPS, "trainer.max_epochs=9"]
    assert train_toy(*plateau, *stop)[0] == 143
    code, run = train_toy(*plateau, "resume=true")
    header = json.loads((run / "metrics.json").read_text())["header"]
    assert (code, header["epochs"], header["plateau"]) == (0, 3, True)
