"""A whole system for tests/deploy/runbook.py: RabbitMQ, Redis, a gateway with TLS, two workers, a mock
for each target, and a Prometheus."""

import json
import os
import re
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RULES = (ROOT / "deploy/prometheus/rules/fanwise.yml").read_text()
BOUND = 180  # seconds until an alert must fire, or a fault must be over
PROMETHEUS = "127.0.0.1:9090"
ADMIN = {"worker-1": 9600, "worker-2": 9601, "gateway": 9602}
MOCKS = {"im": 5001, "away": 5002, "busy": 5003, "ill": 5004, "old": 5005, "cloud": 5006, "shop": 5007}

CONFIG = """
[broker]
url = "{broker}"
[ledger]
url = "{ledger}"
[gateway]
tls_certificate = "{work}/gateway.crt"
tls_key = "{work}/gateway.key"
[log]
format = "text"
[apps.default]
target = "im"
[targets.im]
type = "wukongim"
version = "v3"
sender = "news"
url = "http://127.0.0.1:5001"
limit = "20/s"
[targets.away]
type = "webhook"
url = "http://127.0.0.1:5002/hook"
[targets.busy]
type = "webhook"
url = "http://127.0.0.1:5003/hook"
[targets.ill]
type = "webhook"
url = "http://127.0.0.1:5004/hook"
limit = "300/s"
[targets.old]
type = "wukongim"
version = "v2"
url = "http://127.0.0.1:5005"
call_timeout = "3s"
[targets.cloud]
type = "wukongim"
version = "v2"
url = "http://127.0.0.1:5006"
token = "wrong"
[targets.shop]
type = "wukongim"
version = "v2"
url = "http://127.0.0.1:5007"
"""


def check(true, what):
    if not true:
        sys.exit(f"runbook.py: {what}")


def until(what, probe, bound=BOUND):
    """Waits until a probe gives something."""
    end = time.monotonic() + bound
    while not (found := probe()):
        check(time.monotonic() < end, f"waited {bound} s in vain for {what}")
        time.sleep(0.1)
    return found


def fetch(url, body=None, context=None):
    """The status of an answer, its headers and its content."""
    headers = {"content-type": "application/json"}
    request = urllib.request.Request(url, json.dumps(body).encode() if body is not None else None, headers)
    try:
        with urllib.request.urlopen(request, timeout=30, context=context) as answer:
            return answer.status, answer.headers, answer.read().decode()
    except urllib.error.HTTPError as refused:
        return refused.code, refused.headers, refused.read().decode()


class Prometheus:
    def __init__(self, world):
        rules, shortened = re.subn(r"^( +for:) .*$", r"\1 1s", RULES, flags=re.MULTILINE)
        check(shortened > 10, "the rules have no `for`")
        (world.work / "rules.yml").write_text(rules)
        targets = [f"127.0.0.1:{port}" for port in ADMIN.values()]
        static = [{"targets": targets, "labels": {"namespace": "shop"}}]
        config = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(world.work / "rules.yml")],
            "scrape_configs": [{"job_name": "fanwise", "static_configs": static}],
        }
        # JSON is YAML.
        (world.work / "prometheus.yml").write_text(json.dumps(config))
        world.start(
            "prometheus", "prometheus", f"--config.file={world.work}/prometheus.yml",
            f"--storage.tsdb.path={world.work}/metrics", f"--web.listen-address={PROMETHEUS}",
        )
        # An increase is seen only after an earlier value.
        until("the first values", lambda: self.finds(f"count(up == 1) == {len(targets)}"))

    def api(self, path):
        try:
            return json.loads(fetch(f"http://{PROMETHEUS}/api/v1/{path}")[2])["data"]
        except (OSError, ValueError, KeyError):
            return {}

    def finds(self, expression):
        return self.api("query?query=" + urllib.parse.quote(expression)).get("result")

    def firing(self, alert, labels):
        wanted = ({"alertname": alert} | labels).items()
        alerts = self.api("alerts").get("alerts", [])
        return [it for it in alerts if it["state"] == "firing" and wanted <= it["labels"].items()]

    def now(self, alert, labels):
        """What the alert would say if it looked at the last seconds alone."""
        groups = self.api("rules").get("groups", [])
        rule = next(rule for group in groups for rule in group["rules"] if rule["name"] == alert)
        found = self.finds(re.sub(r"\[\d+m\]", "[5s]", rule["query"]))
        return [it for it in found if labels.items() <= it["metric"].items()]


class System:
    """All processes of the run. They end with the process namespace that they are in."""

    def __init__(self, work, fanwise):
        self.work, self.fanwise, self.begun = work, fanwise, time.monotonic()
        self.running, self.urls = {}, {}
        for kind in ("redis", "rabbitmq"):
            said = self.servers(f"start-{kind}")
            self.urls[kind] = re.search(r"_URL=(.*)", said)[1]
        self.config = work / "fanwise.toml"
        self.config.write_text(
            CONFIG.format(work=work, broker=self.urls["rabbitmq"], ledger=self.urls["redis"])
        )
        (work / "bin").mkdir()
        ctl = work / "bin/rabbitmqctl"
        ctl.write_text(f'#!/bin/sh\nexec {ROOT}/tests/servers ctl {work}/servers "$@"\n')
        ctl.chmod(0o755)
        path = f"{work}/bin:{fanwise.parent}:{os.environ['PATH']}"
        self.environment = {"PATH": path, "HOME": str(work), "FANWISE_CONFIG": str(self.config)}

    def clock(self):
        return f"{time.monotonic() - self.begun:4.0f} s"

    def servers(self, command, *more):
        done = subprocess.run(
            [ROOT / "tests/servers", command, self.work / "servers", *more],
            capture_output=True, text=True, timeout=BOUND,
        )
        check(done.returncode == 0, f"tests/servers {command}: {done.stderr}")
        return done.stdout

    def start(self, name, program, *arguments, **environment):
        with open(self.work / f"{name}.log", "a") as log:
            self.running[name] = subprocess.Popen(
                [program, *arguments], stdout=log, stderr=log, env=self.environment | environment
            )
        return self.running[name]

    def log(self, name):
        return (self.work / f"{name}.log").read_text()

    def mock(self, name, *arguments):
        messages = self.work / f"{name}.messages"
        listen = f"127.0.0.1:{MOCKS[name]}"
        self.start(f"mock-{name}", self.fanwise, "mock-im", "--listen", listen, "--log", messages, *arguments)

        def answers():
            try:
                return fetch(f"http://{listen}/livez")[0] == 200
            except OSError:
                return False

        until(f"the mock {name}", answers)

    def faults(self, name, **faults):
        status, _, said = fetch(f"http://127.0.0.1:{MOCKS[name]}/_mock/faults", faults)
        check(status == 200, f"faults of {name}: {said}")

    def admin(self, name):
        return {"FANWISE_ADMIN__LISTEN": f"127.0.0.1:{ADMIN[name]}"}

    def begin(self, name):
        """Starts a worker or the gateway."""
        self.start(name, self.fanwise, name.split("-")[0], **self.admin(name))

    def ready(self, name):
        def probe():
            check(self.running[name].poll() is None, f"{name} has ended: {self.log(name)}")
            return self.shell("fanwise healthcheck", **self.admin(name))[0] == 0

        until(f"a ready {name}", probe)

    def role(self, name):
        self.begin(name)
        self.ready(name)

    def shell(self, command, **environment):
        """The exit code of a command, and what it prints."""
        done = subprocess.run(
            ["sh", "-c", command], cwd=self.work, env=self.environment | environment,
            text=True, capture_output=True, timeout=BOUND,
        )
        return done.returncode, done.stdout + done.stderr

    def ask(self, command):
        code, said = self.shell(command)
        check(code == 0, f"{command} ends with {code}: {said}")
        return said

    def send(self, key, target, users, *more):
        (self.work / "users").write_text("\n".join(users))
        more = " ".join(more)
        self.ask(f"fanwise send --client-msg-no {key} --target {target} --text Hello --file users {more}")

    def publish(self, key, text, *users):
        """As examples/producer.py does it."""
        (self.work / "users").write_text("\n".join(users))
        producer = f"{sys.executable} {ROOT}/examples/producer.py --url {self.urls['rabbitmq']}"
        self.ask(f"{producer} --client-msg-no {key} --text {text} --file users")

    def post(self, key):
        """The status and the headers of the gateway's answer to a job."""
        job = {"v": 1, "client_msg_no": key, "message": {"type": "text", "text": "Hello"}}
        job |= {"audience": {"users": ["ana"]}}
        context = ssl.create_default_context(cafile=self.work / "gateway.crt")
        return fetch("https://127.0.0.1:9700/v1/jobs", job, context)[:2]

    def moves(self):
        """Waits until the broadcast makes progress."""
        sent = lambda: self.job("broadcast")["accounts"]["sent"]
        before = sent()
        until("progress of the broadcast", lambda: sent() > before)

    def job(self, key):
        return json.loads(self.ask(f"fanwise job show {key} --json"))

    def completed(self, key):
        return until(f"the end of {key}", lambda: self.job(key)["state"] == "completed")

    def certificate(self, days):
        self.ask(
            f"openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days {days} -subj"
            " /CN=fanwise -addext subjectAltName=IP:127.0.0.1 -keyout new.key -out new.crt 2>&1"
        )
        for end in ("key", "crt"):
            (self.work / f"new.{end}").rename(self.work / f"gateway.{end}")
