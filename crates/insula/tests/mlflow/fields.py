"""The texts that each address of MLflow's API takes, out of MLflow's own protocol buffers, as JSON: `{"POST /api/…/*": ["key", "tags.0.key"]}`.
`0` is an item of a list, `*` the name of any member of a map."""

import json
import re
import sys

from google.protobuf.descriptor import FieldDescriptor
from mlflow.protos import databricks_pb2, mlflow_artifacts_pb2, model_registry_pb2, service_pb2, webhooks_pb2
from mlflow.server.handlers import _get_paths

# Requests nest in themselves nowhere deeper than this.
DEPTH_MAX = 6


def texts(message, at=()):
    """Paths of everything in a message that is written as a text."""
    for field in message.fields:
        path = (*at, field.name)
        inner = field.message_type
        if inner is not None and inner.GetOptions().map_entry:
            yield (*path, "*")
            yield (*path, "member")
        elif inner is not None:
            path = (*path, "0") if field.is_repeated else path
            if inner.file.name.startswith("google/protobuf/"):
                yield path
            elif len(path) < DEPTH_MAX:
                yield from texts(inner, path)
        elif field.type in (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES, FieldDescriptor.TYPE_ENUM):
            yield (*path, "0") if field.is_repeated else path


found = {}
for service in (
    service_pb2.MlflowService,
    model_registry_pb2.ModelRegistryService,
    mlflow_artifacts_pb2.MlflowArtifactsService,
    webhooks_pb2.WebhookService,
):
    for method in service.DESCRIPTOR.methods:
        for endpoint in method.GetOptions().Extensions[databricks_pb2.rpc].endpoints:
            for path in _get_paths(endpoint.path, version=endpoint.since.major):
                plain = re.sub(r"<[^>]*>", "*", path.replace("2.0mlflow", "2.0/mlflow"))
                found[f"{endpoint.method} {plain}"] = sorted({".".join(path) for path in texts(method.input_type)})
json.dump(found, sys.stdout)
