"""Processes of the stock MLflow client, all at once against the tracking server of the environment.

    mlflow_clients.py PROCESSES STEPS

Each logs one run: parameters, a metric a step, a batch every ten steps, a tag; then reads it back and compares. Prints one JSON object: calls,
seconds from the moment when all were ready, and CPU of the clients in that time.
"""

import json
import multiprocessing
import os
import sys
import time

os.environ.update(MLFLOW_DISABLE_TELEMETRY="true", GIT_PYTHON_REFRESH="quiet", MLFLOW_ENABLE_ASYNC_LOGGING="false")


def work(number, steps, experiment, ready, begin, told):
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param

    client = MlflowClient()
    run = client.create_run(experiment).info.run_id
    client.log_param(run, "warm", "yes")
    ready.put(number)
    begin.wait()
    cpu, calls = time.process_time(), 0
    client.log_batch(run, params=[Param(f"p{n}", str(n * number)) for n in range(20)])
    client.set_tag(run, "process", str(number))
    calls += 2
    for step in range(steps):
        client.log_metric(run, "loss", number + 1.0 / (step + 1), step=step)
        calls += 1
        if step % 10 == 9:
            client.log_batch(run, metrics=[Metric(f"m{n}", step + n / 100, 1000 + step, step) for n in range(100)])
            calls += 1
    history = client.get_metric_history(run, "loss")
    client.set_terminated(run)
    found = client.get_run(run)
    calls += 3
    cpu = time.process_time() - cpu
    right = (
        sorted((point.step, point.value) for point in history) == [(step, number + 1.0 / (step + 1)) for step in range(steps)]
        and found.data.params["p7"] == str(7 * number)
        and found.data.tags["process"] == str(number)
        and found.info.status == "FINISHED"
        and (steps < 10 or found.data.metrics["m99"] == steps // 10 * 10 - 1 + 0.99)
    )
    told.put((number, calls, cpu, right))


if __name__ == "__main__":
    processes, steps = int(sys.argv[1]), int(sys.argv[2])
    from mlflow import MlflowClient

    experiment = MlflowClient().create_experiment("many processes")
    context = multiprocessing.get_context("spawn")
    ready, begin, told = context.Queue(), context.Event(), context.Queue()
    workers = [context.Process(target=work, args=(n, steps, experiment, ready, begin, told)) for n in range(processes)]
    for worker in workers:
        worker.start()
    for _ in workers:
        ready.get(timeout=300)
    began = time.perf_counter()
    begin.set()
    results = [told.get(timeout=900) for _ in workers]
    seconds = time.perf_counter() - began
    for worker in workers:
        worker.join()
    wrong = [number for number, _, _, right in results if not right]
    if wrong:
        raise SystemExit(f"these processes did not find what they had logged: {wrong}")
    print(json.dumps({"calls": sum(r[1] for r in results), "seconds": seconds, "client_cpu_seconds": sum(r[2] for r in results)}))
