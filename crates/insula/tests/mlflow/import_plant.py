"""Plants differences in the tenant, and one in the source's files at argument 1; says what should be told of each."""

import json
import pathlib
import sys
import tempfile
import warnings

warnings.filterwarnings("ignore")

from mlflow import MlflowClient

client = MlflowClient()
runs = {run.info.run_name: run for experiment in client.search_experiments() for run in client.search_runs([experiment.experiment_id])}
long, outer = runs["long"], runs["outer"]
client.log_metric(long.info.run_id, "loss", 77.25, timestamp=3, step=9)
client.set_tag(long.info.run_id, "t007", "planted")
client.log_param(runs["sweep 3"].info.run_id, "extra", "1")
client.delete_run(runs["sweep 4"].info.run_id)
client.set_registered_model_alias("wald 'ü'", "champion", "5")
client.update_model_version("wald 'ü'", "5", description="another")
with tempfile.TemporaryDirectory() as place:
    path = pathlib.Path(place) / "leer.txt"
    path.write_text("not empty")
    client.log_artifact(outer.info.run_id, str(path))
expected = [
    ["metric points", "loss", "1 points not in the source, the first of them 77.25 at step 9, time 3"],
    ["run tags", "t007", "`planted` here"],
    ["params", "extra", "not in the source"],
    ["runs", "", "deleted here"],
    ["aliases", "champion", "`2` in the source, `5` here"],
    ["versions", "description", "`another` here"],
    ["artifacts", "leer.txt", "sha256"],
]
# In the source: one file is another, one is gone.
(tampered,) = pathlib.Path(sys.argv[1]).rglob("größe 50%.txt")
tampered.write_bytes(b"tampered")
expected.append(["artifacts", "ordner mit ü/größe 50%.txt", "sha256"])
(gone,) = pathlib.Path(sys.argv[1]).rglob("groß.bin")
gone.unlink()
expected.append(["artifacts", "tief/tiefer/groß.bin", "not in the source"])
print(json.dumps(expected))
