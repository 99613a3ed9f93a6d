import os
import shutil
import sys

import mlflow

from session import FOLDER, MODEL, PORT

CODE = """
import sys
sys.path.insert(0, {here!r})
import mlflow
from session import Engine

class Model(mlflow.pyfunc.PythonModel):
    def load_context(self, context):
        self.engine = Engine()

    def predict(self, context, model_input, params=None):
        return {{name: value.tolist() for name, value in self.engine.run(model_input).items()}}

mlflow.models.set_model(Model())
"""

if __name__ == "__main__":
    here = os.path.dirname(os.path.abspath(__file__))
    code, folder = os.path.join(FOLDER, "mlflow_model.py"), os.path.join(FOLDER, "mlflow_model")
    with open(code, "w") as file:
        file.write(CODE.format(here=here))
    shutil.rmtree(folder, ignore_errors=True)
    mlflow.pyfunc.save_model(folder, python_model=code, pip_requirements=[])
    arguments = ["models", "serve", "--model-uri", folder, "--env-manager", "local", "--host", "127.0.0.1", "--port", str(PORT), "--workers", "1"]
    os.environ["PATH"] = os.path.dirname(sys.executable) + os.pathsep + os.environ["PATH"]
    os.execv(sys.executable, [sys.executable, "-m", "mlflow", *arguments])
