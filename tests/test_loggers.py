"""TensorBoard, MLflow and loggers of the user get the configuration, tags and results of a run."""

from __future__ import annotations

import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from hydra.utils import get_class

import toy
from vmr_zoo.engine.loggers import log_config, log_results
from vmr_zoo.engine.other_loggers import mlflow_logger, tensorboard_logger
from vmr_zoo.errors import VmrError

CONFIG = {"method": {"dim": 8, "tags": ["a"]}, "seed": 0}
METRICS = {"header": {"name": "toy", "epochs": 2}, "iid": {"R1@0.5": 40.0, "mIoU": 31.5, "mAP": None}}


@pytest.fixture
def run(tmp_path):
    """A run directory with results."""
    (tmp_path / "metrics.json").write_text(json.dumps(METRICS))
    return tmp_path


@pytest.fixture
def tracking():
    """A local MLflow server; gives its address and the requests that changed something."""
    changes = []

    class Server(BaseHTTPRequestHandler):
        def do_GET(self):
            self.answer({})

        def do_POST(self):
            length = int(self.headers["Content-Length"])
            self.answer(json.loads(self.rfile.read(length)))

        def answer(self, body):
            call = self.path.partition("/mlflow/")[2].partition("?")[0]
            info = {"run_id": "abc", "run_uuid": "abc", "experiment_id": "1", "status": "RUNNING"}
            replies = {
                "experiments/search": {"experiments": []},
                "experiments/create": {"experiment_id": "1"},
                "runs/create": {"run": {"info": info, "data": {}}},
                "runs/get": {"run": {"info": info, "data": {}}},
                "runs/update": {"run_info": info},
            }
            if self.command == "POST" and call != "experiments/search":
                changes.append((call, body))
            missing = call == "experiments/get-by-name"
            reply = {"error_code": "RESOURCE_DOES_NOT_EXIST"} if missing else replies.get(call, {})
            content = json.dumps(reply).encode()
            self.send_response(404 if missing else 200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", changes
        server.shutdown()


def mlflow_of(run, address):
    return mlflow_logger(str(run), "toys", "toy-seed0", {"method": "toy"}, tracking_uri=address)


def test_mlflow_gets_the_run_and_a_resumed_session_continues_it(run, tracking):
    pytest.importorskip("mlflow")
    address, changes = tracking
    logger = mlflow_of(run, address)
    log_config([logger], CONFIG, run, None)
    logger.log_metrics({"selection/R1@0.5": 12.0}, step=3)
    log_results([logger], run)
    calls = dict(changes)
    tags = {one["key"]: one["value"] for one in calls["runs/create"]["tags"]}
    assert (tags["method"], tags["mlflow.runName"]) == ("toy", "toy-seed0")
    batches = [body for call, body in changes if call == "runs/log-batch"]
    parameters = {one["key"]: one["value"] for body in batches for one in body.get("params", [])}
    assert parameters == {"method/dim": "8", "method/tags": "['a']", "seed": "0"}
    metrics = {one["key"]: one["value"] for body in batches for one in body.get("metrics", [])}
    assert metrics == {"selection/R1_at_0.5": 12.0, "final/iid/R1_at_0.5": 40.0, "final/iid/mIoU": 31.5}
    header = {body["key"]: body["value"] for call, body in changes if call == "runs/set-tag"}
    assert header == {"header.name": "toy", "header.epochs": "2"}

    changes.clear()
    log_config([mlflow_of(run, address)], {**CONFIG, "seed": 1}, run, 3)
    assert [(call, body["run_id"]) for call, body in changes] == [("runs/update", "abc")]


@pytest.mark.parametrize(
    ("address", "words"),
    [
        (None, ["MLFLOW_TRACKING_URI", "sqlite:///"]),
        ("http://me:secret@localhost:1", ["MLFLOW_TRACKING_PASSWORD"]),
        ("http://127.0.0.1:1", ["MLflow at http://127.0.0.1:1 does not answer"]),
    ],
)
def test_mlflow_without_a_server_is_refused_before_training(run, monkeypatch, address, words):
    pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(VmrError) as error:
        mlflow_of(run, address)
    assert all(word in str(error.value) for word in words), error.value
    assert "secret" not in str(error.value)


def test_tensorboard_shows_configuration_tags_and_results(run):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")

    def session(steps, seen, epochs):
        logger = tensorboard_logger(str(run), "tensorboard", ["toy", "toy", "paper"])
        log_config([logger], CONFIG, run, steps)
        for step in seen:
            logger.log_metrics({"selection/R1@0.5": float(epochs)}, step=step)
        log_results([logger], run)
        logger.finalize("success")

    session(None, (1, 2, 3), 1)
    session(2, (2, 3, 4), 2)  # resumed after step 1: later ones are taken again
    events = accumulator.EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    curve = [(event.step, event.value) for event in events.Scalars("selection/R1@0.5")]
    assert curve == [(1, 1.0), (2, 2.0), (3, 2.0), (4, 2.0)]
    assert events.Scalars("final/iid/R1@0.5")[-1].value == 40.0
    texts = {
        tag: events.Tensors(tag)[-1].tensor_proto.string_val[0].decode() for tag in events.Tags()["tensors"]
    }
    assert "dim: 8" in texts["config/text_summary"]
    assert texts["tags/text_summary"] == "toy, paper"
    parameters = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content.decode(
        errors="replace"
    )
    assert "method/dim" in parameters
    assert "header/epochs" in parameters


def test_a_logger_of_the_user_gets_configuration_and_results(run):
    received = []

    class Own(get_class("lightning.pytorch.loggers.logger.Logger")):
        name, version = "own", "1"

        def log_hyperparams(self, params):
            received.append(params)

        def log_metrics(self, metrics, step=None):
            received.append(metrics)

    log_config([Own()], CONFIG, run, None)
    log_results([Own()], run)
    assert received == [CONFIG, {"final/iid/R1@0.5": 40.0, "final/iid/mIoU": 31.5}]


@pytest.mark.parametrize(
    ("name", "package", "command"),
    [
        ("tensorboard", "tensorboard", "pip install 'vmr_zoo[tensorboard]'"),
        ("mlflow", "mlflow", "pip install 'vmr_zoo[mlflow]'"),
        ("[csv,wandb]", "wandb", "pip install wandb"),
    ],
)
def test_a_missing_package_is_named_before_training(
    vmr, tmp_path, monkeypatch, capsys, name, package, command
):
    monkeypatch.setitem(sys.modules, package, None)
    chosen = (toy.SEARCH, "data=toy", "method=toy", f"logger={name}", f"run={tmp_path}/run")
    assert vmr("train", *chosen, "trainer.accelerator=cpu") == 2
    assert command in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("argument", ["flush_sec", "max_queues"])
def test_an_unknown_argument_is_refused_with_the_nearest(run, argument):
    pytest.importorskip("tensorboard")
    with pytest.raises(VmrError, match=rf"logger\.tensorboard '{argument}'.*(flush_secs|max_queue)"):
        tensorboard_logger(str(run), "tensorboard", [], **{argument: 1})


@pytest.mark.parametrize(
    ("chosen", "names"),
    [
        ("logger=[wandb,tensorboard]", ["csv", "wandb", "tensorboard"]),
        ("logger=mlflow", ["csv", "mlflow"]),
        ("logger=none", []),
    ],
)
def test_loggers_are_chosen_alone_or_as_a_list(vmr, capsys, chosen, names):
    assert vmr("train", chosen, "--cfg=job", "--package=logger") == 0
    found = [line.rstrip(":") for line in capsys.readouterr().out.splitlines() if line[:1].isalpha()]
    assert found == names
