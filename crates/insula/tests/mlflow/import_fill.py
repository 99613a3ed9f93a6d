"""Fills an MLflow of any kind with the odd things that people have: `import_fill.py full | small`, at MLFLOW_TRACKING_URI."""

import os
import random
import sys
import tempfile
import warnings

warnings.filterwarnings("ignore")

import mlflow
import mlflow.onnx
import mlflow.sklearn
import numpy as np
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from skl2onnx import to_onnx
from sklearn.linear_model import LogisticRegression

client = MlflowClient()
chance = random.Random(7)


def artifact(run_id, folder, name, content):
    with tempfile.TemporaryDirectory() as place:
        path = os.path.join(place, name)
        with open(path, "wb") as file:
            file.write(content)
        client.log_artifact(run_id, path, folder)


def small():
    mlflow.set_experiment("zwei / größe 50% #")
    with mlflow.start_run(run_name="only") as run:
        mlflow.log_params({"größe": "ü", "leer": ""})
        for step in range(70):
            mlflow.log_metric("loss", chance.random(), step=69 - step)
        artifact(run.info.run_id, "a b", "größe 50%.txt", b"x")
    client.create_registered_model("small", description="one")
    client.create_model_version("small", f"runs:/{run.info.run_id}/a b", run.info.run_id)


def histories():
    experiment = client.create_experiment("histories ✓", tags={"team": "größe", "mlflow.note.content": "of *histories*"})
    run = client.create_run(experiment, run_name="long", tags={"a tag/with.all-of:it": "z\n" * 100})
    ids = run.info.run_id
    points = [Metric("loss", chance.gauss(0, 1e-7), 1_700_000_000_000 + at, at) for at in range(2500)]
    for at in range(0, len(points), 1000):
        client.log_batch(ids, metrics=points[at : at + 1000])
    special = [("nan", float("nan")), ("inf", float("inf")), ("-inf", float("-inf")), ("tiny", 5e-324), ("big", 1.7976931348623157e308)]
    for name, value in special:
        client.log_metric(ids, f"odd/{name}", value, timestamp=1, step=-3)
        client.log_metric(ids, "mixed", value, timestamp=2, step=chance.randrange(5))
    # Not in the order of time, and one step many times.
    client.log_batch(ids, metrics=[Metric("back", chance.random(), 2_000 - at, at % 7) for at in range(300)])
    client.log_batch(ids, params=[Param(f"p{at:03}", f"wert {at} ü") for at in range(100)])
    client.log_batch(ids, params=[Param(f"q/{at:03}", "x" * 6000) for at in range(60)])
    client.log_batch(ids, tags=[RunTag(f"t{at:03}", "ß" * 500) for at in range(100)])
    client.set_terminated(ids, "KILLED", end_time=1_800_000_000_000)
    client.create_run(experiment, run_name="still running", start_time=5)
    gone = client.create_run(experiment, run_name="deleted")
    client.log_metric(gone.info.run_id, "m", 1.5)
    artifact(gone.info.run_id, None, "kept.txt", b"still here")
    client.set_terminated(gone.info.run_id, "FAILED")
    client.delete_run(gone.info.run_id)
    for at in range(12):
        extra = client.create_run(experiment, run_name=f"sweep {at}", start_time=1000 + at)
        client.log_batch(extra.info.run_id, metrics=[Metric(f"m{key}", chance.random(), 10, key) for key in range(5)])
        client.set_terminated(extra.info.run_id)


def nested():
    mlflow.set_experiment("a/b c#d %41 ü'")
    with mlflow.start_run(run_name="outer", description="with children") as outer:
        data = mlflow.data.from_numpy(np.arange(12.0).reshape(4, 3), name="weights ü")
        mlflow.log_input(data, context="training", tags={"zweck": "ü"})
        for at in range(3):
            with mlflow.start_run(run_name=f"inner {at}", nested=True):
                mlflow.log_metric("m", at)
    ids = outer.info.run_id
    names = ["mit leer.txt", "größe 50%.txt", "plus+and&.bin", "ende.", "😀.txt"]
    if os.environ.get("INSULA_ODD_NAMES"):
        # Names that a server does not take or give over HTTP, and a store on a disk does.
        names += ["a#b.txt", "a%20b.txt"]
    for name in names:
        artifact(ids, "ordner mit ü", name, name.encode() * 50)
    artifact(ids, None, "leer.txt", b"")
    artifact(ids, "tief/tiefer", "groß.bin", bytes(chance.getrandbits(8) for _ in range(700_000)))


def models():
    mlflow.set_experiment("models")
    x = np.array([[0.0, 1.0], [1.0, 0.0], [2.0, 1.0], [3.0, 5.0]], dtype=np.float32)
    fitted = LogisticRegression().fit(x, [0, 0, 1, 1])
    requirements = ["scikit-learn"]
    with mlflow.start_run(run_name="trained") as run:
        pickled = mlflow.sklearn.log_model(fitted, name="pickled", pip_requirements=requirements, params={"c": "1", "größe": "ü"})
        mlflow.log_metric("auc", 0.9, step=3, model_id=pickled.model_id)
        onnx = to_onnx(fitted, x[:1], options={"zipmap": False})
        mlflow.onnx.log_model(onnx, name="net", pip_requirements=["onnx"], registered_model_name="net")
    client.set_logged_model_tags(pickled.model_id, {"lob": "sehr gut"})
    ids = run.info.run_id
    for at in range(1, 7):
        artifact(ids, f"v{at}", "weights.bin", bytes([at]) * 100)
    client.create_registered_model("wald 'ü'", tags={"owner": "ada", "größe": "1 m"}, description="Erste Zeile\nzweite")
    for at in range(1, 7):
        client.create_model_version("wald 'ü'", f"runs:/{ids}/v{at}", ids, tags={"at": str(at)}, description=f"version {at}")
    for at in (1, 3, 4, 6):
        client.delete_model_version("wald 'ü'", str(at))
    client.set_registered_model_alias("wald 'ü'", "champion", "2")
    client.set_registered_model_alias("wald 'ü'", "Challenger", "5")
    client.transition_model_version_stage("wald 'ü'", "2", "Production")
    client.transition_model_version_stage("wald 'ü'", "5", "Staging")
    client.create_registered_model("leer")
    if not os.environ["MLFLOW_TRACKING_URI"].startswith("http"):
        # Files that belong to no run; a server takes no such version.
        source = os.path.abspath("loose/model")
        os.makedirs(source)
        with open(source + "/weights.bin", "wb") as file:
            file.write(b"loose")
        client.create_registered_model("elsewhere")
        client.create_model_version("elsewhere", source)
    mlflow.genai.register_prompt(name="gruss", template="Hallo {{ name }}")


def deleted():
    experiment = client.create_experiment("deleted with runs")
    run = client.create_run(experiment)
    client.log_param(run.info.run_id, "p", "1")
    client.delete_experiment(experiment)


if sys.argv[1] == "small":
    small()
else:
    histories()
    nested()
    models()
    deleted()
