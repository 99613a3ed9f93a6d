"""Serves an MLflow store to one importer, on a socket in a folder that is nobody else's, and takes nothing but reading from it.

Run with `-c`; the store comes in INSULA_IMPORT_STORE, because an address may hold a password, and the place of the server's artifacts in
INSULA_IMPORT_ARTIFACTS. The first line of the answer is JSON: {"socket": ...} when it serves, {"error": ..., "help": ...} when it cannot.

What ends it is the end of standard input, so it does not outlive the importer, however that ends.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse

START_SECONDS_MAX = 120
STOP_SECONDS_MAX = 10
REMOVALS_MAX = 50
LOG_CHARS_SHOWN = 300


class Refused(Exception):
    def __init__(self, error, help_text):
        super().__init__(error)
        self.error, self.help = error, help_text


def say(**answer):
    print(json.dumps(answer), flush=True)


def mlflow_checked():
    from importlib import metadata

    remedy = f"install it beside: {sys.executable} -m pip install 'mlflow>=3', or name another Python with --python"
    try:
        version = metadata.version("mlflow")
    except metadata.PackageNotFoundError:
        raise Refused(f"`{sys.executable}` has no mlflow", remedy) from None
    if int(version.split(".")[0]) < 3:
        raise Refused(f"`{sys.executable}` has mlflow {version}, and a database or folder takes 3 or newer", remedy)


def sqlite_copied(uri, folder):
    """A consistent copy: the source may be in use, and a copy can be brought up to date without touching the source."""
    import sqlite3

    path = urllib.parse.unquote(uri[len("sqlite:///") :].split("?")[0])
    if not os.path.isfile(path):
        raise Refused(f"there is no database `{path}`", "sqlite:///mlflow.db is in this folder, sqlite:////srv/mlflow.db from the root")
    try:
        source = sqlite3.connect("file:" + urllib.parse.quote(os.path.abspath(path)) + "?mode=ro", uri=True)
        copy = sqlite3.connect(os.path.join(folder, "mlflow.db"))
        with source, copy:
            source.backup(copy)
        copy.close()
        source.close()
    except (sqlite3.Error, OSError) as error:
        raise Refused(f"cannot read the database `{path}`: {error}", "is it one of MLflow, readable, and is there room in TMPDIR for a copy?") from None
    return "sqlite:///" + os.path.join(folder, "mlflow.db")


def postgres_read_only(uri):
    parts = urllib.parse.urlsplit(uri)
    query = urllib.parse.parse_qsl(parts.query)
    options = " ".join([value for key, value in query if key == "options"] + ["-c default_transaction_read_only=on"])
    query = [(key, value) for key, value in query if key != "options"] + [("options", options)]
    return urllib.parse.urlunsplit(parts._replace(query=urllib.parse.urlencode(query, quote_via=urllib.parse.quote)))


def folder_linked(path, folder):
    """A folder of links: what MLflow makes beside the experiments (a default one, a bin) it makes here and not there."""
    if not os.path.isdir(path):
        raise Refused(f"there is no folder `{path}`", "name the folder `mlruns` itself")
    view = os.path.join(folder, "mlruns")
    os.mkdir(view)
    for name in os.listdir(path):
        os.symlink(os.path.join(os.path.abspath(path), name), os.path.join(view, name))
    return "file://" + urllib.parse.quote(view)


def opened(store, folder):
    scheme = store.split(":", 1)[0].split("+", 1)[0] if ":" in store else ""
    if scheme == "sqlite":
        return sqlite_copied("sqlite:" + store.split(":", 1)[1], folder)
    if scheme == "postgresql":
        return postgres_read_only(store)
    if scheme in ("", "file"):
        path = urllib.parse.unquote(urllib.parse.urlsplit(store).path) if scheme else store
        return folder_linked(path, folder)
    raise Refused(f"a source of the kind `{scheme}` is not read from here", "start `mlflow server` on it and give its address")


class Server:
    def __init__(self, store, folder):
        self.log = os.path.join(folder, "log")
        self.socket = os.path.join(folder, "socket")
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_TRACKING_", "INSULA_"))}
        environment.update(
            MLFLOW_BACKEND_STORE_URI=store,
            MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false",
            MLFLOW_DISABLE_TELEMETRY="true",
            MLFLOW_ALLOW_FILE_STORE="true",
        )
        environment.pop("MLFLOW_REGISTRY_URI", None)
        self.environment = environment
        artifacts = os.environ["INSULA_IMPORT_ARTIFACTS"]
        # With a socket of the file system the address is not listened on; it stays on the loopback should that ever change.
        self.command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", "1", "--workers", "1"]
        self.command += ["--artifacts-destination", artifacts, "--uvicorn-opts", "--uds " + self.socket]
        self.process = None

    def start(self):
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                self.command, env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + START_SECONDS_MAX
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                return False
            try:
                with socket.socket(socket.AF_UNIX) as probe:
                    probe.connect(self.socket)
                    return True
            except OSError:
                time.sleep(0.1)
        return False

    def upgrade(self):
        with open(self.log, "ab") as log:
            command = [sys.executable, "-m", "mlflow", "db", "upgrade", self.environment["MLFLOW_BACKEND_STORE_URI"]]
            return subprocess.run(command, env=self.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, check=False).returncode == 0

    def stop(self):
        if self.process is None:
            return
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self.process.pid, number)
            except ProcessLookupError:
                break
            try:
                self.process.wait(STOP_SECONDS_MAX)
            except subprocess.TimeoutExpired:
                continue

    def last_words(self):
        with open(self.log, errors="replace") as log:
            said = [line.strip() for line in log.read().splitlines() if line.strip()]
        return said[-1][-LOG_CHARS_SHOWN:] if said else "it says nothing"


def serve(folder):
    mlflow_checked()
    given = os.environ["INSULA_IMPORT_STORE"]
    store = opened(given, folder)
    server = Server(store, folder)
    try:
        # An old copy is brought up to date; anything else is not ours to change.
        if not server.start() and not (store.startswith("sqlite:") and server.upgrade() and server.start()):
            said = server.last_words().replace(store, "the store")
            raise Refused(f"mlflow does not serve this source: {said}", "does `mlflow server --backend-store-uri` start on it?")
        say(socket=server.socket)
        ended = threading.Event()
        threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
        while not ended.wait(0.5) and server.process.poll() is None:
            pass
    finally:
        server.stop()


def main():
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    folder = tempfile.mkdtemp(prefix="insula-import-")
    try:
        serve(folder)
    except Refused as refused:
        say(error=refused.error, help=refused.help)
    except KeyboardInterrupt:
        pass
    finally:
        # A process of the server that is dying may still make a file.
        for _ in range(REMOVALS_MAX):
            shutil.rmtree(folder, ignore_errors=True)
            if not os.path.exists(folder):
                break
            time.sleep(0.1)


main()
