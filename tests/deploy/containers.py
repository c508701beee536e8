#!/usr/bin/env python3
"""Checks deploy/Dockerfile and docker-compose.yml without a container engine.

  containers.py STAGE HADOLINT SCHEMA    STAGE: what deploy/packages/stage has laid out; SCHEMA: that
                                         of docker-compose.yml

The files are linted and held against the published schema and our own rules. Then each service of
docker-compose.yml runs as the file says, in a sandbox of its own (bubblewrap): its user, read-only
root, volumes, command, environment and health check. RabbitMQ and Redis are those of this machine
instead of their images; all services share one network of their own, so only their admin ports
need different addresses.
"""

import glob
import json
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

import jsonschema
import yaml
from network import INSIDE, loopback_up, run_in_own_network

ROOT = Path(__file__).resolve().parents[2]
COMPOSE = ROOT / "docker-compose.yml"
DOCKERFILE = ROOT / "deploy/Dockerfile"
BOUND = 90  # seconds until a service must be healthy


def check(true, what):
    if not true:
        sys.exit(f"containers.py: {what}")


# --- the Dockerfile -------------------------------------------------------------------------------


def instructions():
    """The instructions of the last stage, in order."""
    text = re.sub(r"^\s*#.*\n", "", DOCKERFILE.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    stage = re.split(r"^FROM .*$", text, flags=re.MULTILINE)[-1]
    return [tuple(line.split(None, 1)) for line in stage.splitlines() if line.strip()]


def image():
    """What the image says about the processes that run in it."""
    found = {"env": {}}
    for name, rest in instructions():
        if name == "ENV":
            found["env"] |= dict(pair.split("=", 1) for pair in shlex.split(rest))
        elif name in ("ENTRYPOINT", "CMD"):
            found[name.lower()] = json.loads(rest)
        elif name == "HEALTHCHECK":
            found["check"] = json.loads(rest[rest.index("CMD") + 3 :])
        elif name in ("USER", "WORKDIR", "VOLUME", "EXPOSE"):
            found[name.lower()] = rest.strip()
    return found


def check_dockerfile(hadolint):
    subprocess.run([hadolint, DOCKERFILE], check=True)
    froms = re.findall(r"^FROM (\S+)", DOCKERFILE.read_text(), flags=re.MULTILINE)
    check(
        all(it == "scratch" or re.search(r"@sha256:[0-9a-f]{64}$", it) for it in froms),
        f"Dockerfile: every base image needs a digest: {froms}",
    )
    its = image()
    check(re.fullmatch(r"[1-9]\d*:[1-9]\d*", its["user"]), "Dockerfile: USER must be a number, not 0")
    check(its["volume"] == its["workdir"] == "/data", "Dockerfile: data belongs to /data")
    ports = {value.rpartition(":")[2] for key, value in its["env"].items() if key.endswith("__LISTEN")}
    check(ports == set(its["expose"].split()), "Dockerfile: EXPOSE and the addresses differ")


# --- docker-compose.yml ---------------------------------------------------------------------------


def services():
    return yaml.safe_load(COMPOSE.read_text())["services"]


def check_compose(schema):
    compose = yaml.safe_load(COMPOSE.read_text())
    jsonschema.validate(compose, json.loads(schema.read_text()))
    volumes = compose["volumes"]
    for name, it in services().items():
        where = f"docker-compose.yml: {name}"
        check(it.get("read_only") is True, f"{where}: read_only is missing")
        check(it.get("cap_drop") == ["ALL"] and "cap_add" not in it, f"{where}: cap_drop: [ALL]")
        check("no-new-privileges:true" in it.get("security_opt", []), f"{where}: no-new-privileges")
        check("mem_limit" in it, f"{where}: mem_limit is missing")
        check(it.get("logging", {}).get("options", {}).get("max-size"), f"{where}: no log limit")
        check("restart" in it, f"{where}: restart is missing")
        check("build" in it or "@sha256:" in it["image"], f"{where}: the image needs a digest")
        for port in it.get("ports", []):
            check(port.startswith("127.0.0.1:"), f"{where}: {port} is reachable from outside")
        for key in it.get("environment", {}):
            secret = re.search("PASSWORD|TOKEN|SECRET", key) and not key.endswith("FILE")
            check(not secret, f"{where}: {key} belongs in a file")
        for volume in it.get("volumes", []):
            source = volume.split(":")[0]
            there = (ROOT / source).exists() if source.startswith(".") else source in volumes
            check(there, f"{where}: there is no {source}")
        for other in it.get("depends_on", {}):
            check(other in services(), f"{where}: there is no service {other}")


# --- sandboxes ------------------------------------------------------------------------------------


class Sandbox:
    """The root, environment and user of one service."""

    def __init__(self, name, service, work, stage, number):
        self.name, self.service = name, service
        self.ours = "build" in service
        its = image() if self.ours else {"env": {}, "entrypoint": [], "cmd": []}
        self.command = service.get("entrypoint", its["entrypoint"]) + service.get("command", its["cmd"])
        if name == "rabbitmq":
            self.command = ["/usr/lib/rabbitmq/bin/rabbitmq-server"]
        environment = its["env"] | service.get("environment", {})
        if self.ours:
            environment["FANWISE_ADMIN__LISTEN"] = f"127.0.0.{number}:9600"
        user = service.get("user", its.get("user", "0:0")).split(":")
        home = "/var/lib/rabbitmq" if name == "rabbitmq" else "/tmp"
        path = "/opt/fanwise:/usr/lib/rabbitmq/bin:/usr/bin:/bin"
        self.environment = {"PATH": path, "HOME": home} | environment
        names = "".join(f"127.0.0.1 {it}\n" for it in services())
        (work / "hosts").write_text("127.0.0.1 localhost\n" + names)
        self.args = ["bwrap", "--die-with-parent", "--unshare-pid", "--unshare-uts"]
        self.args += ["--unshare-user", "--uid", user[0], "--gid", user[1]]
        self.args += ["--hostname", service.get("hostname", name)]
        self.args += ["--ro-bind", "/usr", "/usr", "--proc", "/proc", "--dev", "/dev"]
        for folder in ("bin", "lib", "lib64"):
            self.args += ["--symlink", f"usr/{folder}", f"/{folder}"]
        self.args += ["--ro-bind", work / "hosts", "/etc/hosts", "--ro-bind", "/etc/ssl", "/etc/ssl"]
        if self.ours:
            self.args += ["--ro-bind", stage / "usr/bin", "/opt/fanwise"]
            self.bind(work / "volumes" / f"{name}-data", its["volume"])
            self.args += ["--chdir", its["workdir"]]
        for folder in service.get("tmpfs", []):
            self.args += ["--tmpfs", folder]
        for volume in service.get("volumes", []):
            source, target, *mode = volume.split(":")
            if source.startswith("."):
                self.args += ["--ro-bind", ROOT / source, target]
            else:
                self.bind(work / "volumes" / source, target, mode == ["ro"])
        # An image has the folders of its volumes; here bubblewrap has made them.
        self.args += ["--remount-ro", "/"]

    def bind(self, source, target, read_only=False):
        source.mkdir(parents=True, exist_ok=True)
        self.args += ["--ro-bind" if read_only else "--bind", source, target]

    def start(self, command, **options):
        return subprocess.Popen(self.args + command, env=self.environment, **options)

    def run(self, command):
        done = subprocess.run(
            self.args + command, env=self.environment, text=True, capture_output=True, timeout=BOUND
        )
        return done.returncode, done.stdout + done.stderr

    def health(self):
        check_of = self.service.get("healthcheck", {})
        if check_of.get("disable"):
            return None
        test = check_of.get("test")
        if test is None:
            return image()["check"] if self.ours else None
        return ["sh", "-c", test[1]] if test[0] == "CMD-SHELL" else test[1:]


class Project:
    """docker compose up, in sandboxes."""

    def __init__(self, work, stage):
        self.work, self.boxes, self.running, self.printed = work, {}, {}, {}
        for number, (name, service) in enumerate(services().items(), 2):
            if name not in ("prometheus", "grafana"):  # their programs are only in their images
                self.boxes[name] = Sandbox(name, service, work, stage, number)

    def up(self, name):
        if name in self.running or name in self.printed:
            return
        box = self.boxes[name]
        for other, condition in box.service.get("depends_on", {}).items():
            self.up(other)
            if condition["condition"] == "service_healthy":
                self.healthy(other)
        if name == "rabbitmq":
            port_mapper()
        if name == "secrets":
            code, self.printed[name] = box.run(box.command)
            check(code == 0, f"{name} ended with {code}: {self.printed[name]}")
            return
        log = open(self.work / f"{name}.log", "w")
        self.running[name] = box.start(box.command, stdout=log, stderr=log)

    def healthy(self, name):
        box, end = self.boxes[name], time.monotonic() + BOUND
        while True:
            code, said = box.run(box.health())
            if code == 0:
                return
            log = (self.work / f"{name}.log").read_text()[-2000:]
            check(self.running[name].poll() is None, f"{name} has ended: {log}")
            check(time.monotonic() < end, f"{name} is not healthy: {said}\n{log}")
            time.sleep(0.1)


def port_mapper():
    """The port mapper of Erlang. In a container, the server or its health check starts one, and it
    stays. Here one that a health check started would end with the sandbox of the check, while the
    server registers with it."""
    program = shutil.which("epmd") or max(glob.glob("/usr/lib/erlang/erts-*/bin/epmd"))
    log = subprocess.DEVNULL
    subprocess.Popen([program, "-address", "127.0.0.1"], stdout=log, stderr=log)

    def listens():
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", 4369)) == 0

    eventually("port mapper", listens)


def eventually(what, condition):
    end = time.monotonic() + BOUND
    while not condition():
        check(time.monotonic() < end, f"no {what} within {BOUND} s")
        time.sleep(0.2)


def post(path, body, token=None):
    """The status of a request to the published port of the gateway."""
    headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {token}"} if token else {})
    request = urllib.request.Request(f"http://127.0.0.1:9700{path}", json.dumps(body).encode(), headers)
    try:
        return urllib.request.urlopen(request, timeout=30).status
    except urllib.error.HTTPError as refused:
        return refused.code


def run_compose(work, stage):
    project = Project(work, stage)
    for name in project.boxes:
        project.up(name)
    for name in ("gateway", "worker", "mock-im"):
        project.healthy(name)
    gateway = project.boxes["gateway"]

    code, said = gateway.run(["fanwise", "doctor"])
    check(code == 0, f"doctor ends with {code}: {said}")
    printed = re.search(r"docker compose exec gateway (fanwise send .*)", project.printed["secrets"])
    code, said = gateway.run(shlex.split(printed[1]))
    check(code == 0 and "2 sent" in said, f"the printed command ends with {code}: {said}")

    token = (work / "volumes/fanwise-secrets/gateway-token").read_text()
    job = {"v": 1, "client_msg_no": "http", "message": {"type": "text", "text": "Hi"}}
    job["audience"] = {"users": ["ana"]}
    check(post("/v1/jobs", job) == 401, "the gateway asks for no token")
    check(post("/v1/jobs", job, token) == 202, "the gateway does not accept its token")

    def load_is_sent():
        jobs = json.loads(gateway.run(["fanwise", "job", "list", "--json"])[1])
        jobs = jobs if isinstance(jobs, list) else jobs["jobs"]
        return any(j["client_msg_no"].startswith("load-") and j["state"] == "completed" for j in jobs)

    eventually("completed job of the load generator", load_is_sent)

    # A second start keeps the secrets.
    code, _ = project.boxes["secrets"].run(project.boxes["secrets"].command)
    check(code == 0, "the secrets cannot be made a second time")
    check((work / "volumes/fanwise-secrets/gateway-token").read_text() == token, "new secrets")
    for name, process in reversed(project.running.items()):
        process.terminate()
        process.wait(BOUND)


def run_alone(work, stage):
    """docker run … serve, with an empty data folder, and docker run … demo."""
    target = {"FANWISE_TARGETS__IM__TYPE": "webhook", "FANWISE_TARGETS__IM__URL": "http://127.0.0.1:1/"}
    serve = {"build": ".", "command": ["serve"], "tmpfs": ["/tmp"], "environment": target}
    code, said = Sandbox("open", serve, work, stage, 60).run(["fanwise", "serve"])
    check(code == 78 and "gateway.token" in said, f"serve without a token: {code} {said}")

    serve["environment"] = target | {"FANWISE_GATEWAY__TOKEN": "a-token-of-this-test"}
    box = Sandbox("alone", serve, work, stage, 61)
    with open(work / "alone.log", "w") as log:
        process = box.start(box.command, stdout=log, stderr=log)
    eventually("healthy serve", lambda: box.run(box.health())[0] == 0)
    code, said = box.run(["fanwise", "send", "--client-msg-no", "a", "--text", "Hello", "ana"])
    check(code == 0, f"send inside the container of serve: {code} {said}")
    check((work / "volumes/alone-data/fanwise.redb").exists(), "serve keeps no data in /data")
    process.terminate()
    process.wait(BOUND)

    code, said = box.run(["fanwise", "demo", "--recipients", "100", "--json"])
    check(code == 0 and '"accounts_exact":true' in said, f"demo: {code} {said}")


def main():
    if sys.argv[1] != INSIDE:
        stage, hadolint, schema = Path(sys.argv[1]).resolve(), sys.argv[2], Path(sys.argv[3])
        check_dockerfile(hadolint)
        check_compose(schema)
        sys.exit(run_in_own_network(__file__, stage))
    # The ports of docker-compose.yml are free here.
    loopback_up()
    stage = Path(sys.argv[2])
    with tempfile.TemporaryDirectory(prefix="fanwise-compose.") as work:
        run_alone(Path(work), stage)
        run_compose(Path(work), stage)
    print("containers: Dockerfile, docker-compose.yml, serve, demo, and the services of compose: passed")


main()
