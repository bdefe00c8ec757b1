"""What the end-to-end scripts share: finding the program, running it, starting and stopping a server."""

import contextlib
import os
import pathlib
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden"
sys.path.insert(0, str(GOLDEN))


def program_argument(parser):
    parser.add_argument("--lorikeet", default=str(ROOT / "build" / "release" / "lorikeet"), help="the program under test")


def run(*command, ok=(0,)):
    """Run to the end; returns stdout. An exit code outside ok stops the test with the program's own words."""
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    if done.returncode not in ok:
        raise SystemExit(f"{' '.join(map(str, command))}\nexit {done.returncode}\n{done.stderr[-4000:]}")
    return done.stdout


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@contextlib.contextmanager
def server(lorikeet, base, adapters, *more, timeout_s=60):
    """`lorikeet serve` on a free port: yields its URL once /health answers, ends it with SIGTERM. adapters: {name: path}."""
    port = free_port()
    command = [lorikeet, "serve", base, "--host", "127.0.0.1", "--port", str(port)]
    for name, path in adapters.items():
        command += ["--adapter", f"{name}={path}"]
    log = tempfile.TemporaryFile("w+")  # a pipe nobody reads would stop the server once full
    process = subprocess.Popen([str(c) for c in [*command, *more]], stdout=subprocess.DEVNULL, stderr=log, env={**os.environ, "NO_COLOR": "1"})
    url = f"http://127.0.0.1:{port}"
    try:
        until = time.monotonic() + timeout_s
        while True:
            if process.poll() is not None:
                log.seek(0)
                raise SystemExit(f"the server ended with {process.returncode}:\n{log.read()[-4000:]}")
            try:
                with urllib.request.urlopen(url + "/health", timeout=2) as r:
                    if r.status == 200:
                        break
            except OSError:
                pass
            if time.monotonic() > until:
                raise SystemExit(f"no answer from {url}/health in {timeout_s} s")
            time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            raise SystemExit("the server did not end within 20 s of SIGTERM")


class Report:
    """Counts checks, prints each; done() is the exit code."""

    def __init__(self):
        self.bad = 0

    def check(self, good, what, detail=""):
        print(f"{'ok  ' if good else 'FAIL'} {what}{' -- ' + str(detail) if detail != '' and not good else ''}")
        self.bad += not good

    def done(self):
        print("all good" if not self.bad else f"{self.bad} failed")
        return 1 if self.bad else 0
