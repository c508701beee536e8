#!/usr/bin/env python3
"""Follows docs/runbook.md as its readers do: by night, alert by alert, on a system that is ill.

  runbook.py FANWISE    FANWISE: a built binary. The Python that runs this file has pika

RabbitMQ, Redis, a gateway with TLS, two workers and a mock for each target run in a network of their
own, and a Prometheus with the rules of deploy/prometheus, of which only `for` is shortened. Each part
below provokes an alert, waits until it fires, and opens the entry that it links to. It runs every
command of the entry as it stands there, and sees the cause in the output. Then it does what the entry
says, until what stands under "Over" is true. A part looks up all that it runs and quotes, and fails if
the entry does not say it, or has a command that it does not run.

A broadcast runs all the time. In the end its accounts must be exact, and those of all other jobs, and
the logs of the mocks must have nobody twice.
"""

import collections
import json
import re
import signal
import ssl
import sys
import tempfile
from pathlib import Path

from network import INSIDE, loopback_up, run_in_own_network
from system import ADMIN, BOUND, MOCKS, ROOT, RULES, Prometheus, System, check, until

RUNBOOK = (ROOT / "docs/runbook.md").read_text()
BROADCAST = 6000  # recipients of the job that runs all the time


def text_of(source):
    """A text without its line breaks, so that a sentence can be found in it."""
    return " ".join(source.split())


# --- the runbook ----------------------------------------------------------------------------------


class Entry:
    """The entry of an alert that fires, and who follows it."""

    def __init__(self, world, alert, **labels):
        self.world, self.alert, self.labels = world, alert, labels
        fired = until(f"the alert {alert}", lambda: world.prometheus.firing(alert, labels))
        link = fired[0]["annotations"]["runbook_url"]
        check(link == f"docs/runbook.md#{alert.lower()}", f"{alert} links to {link}")
        print(f"  {world.clock()} {alert}: fires", flush=True)
        entry = re.search(rf"^## {alert}\n(.*?)(?=^## |\Z)", RUNBOOK, re.MULTILINE | re.DOTALL)
        check(entry, f"the runbook has no entry {alert}")
        parts = re.split(r"^\*\*(Users|Cause|Do|Over)\b", entry[1], flags=re.MULTILINE)
        self.parts = dict(zip(parts[1::2], parts[2::2]))
        self.left = {it for part in ("Cause", "Do") for it in self.in_blocks(part)}

    def in_blocks(self, part):
        lines = "\n".join(re.findall(r"^```sh\n(.*?)^```", self.parts[part], re.MULTILINE | re.DOTALL))
        return [re.sub(r"\s+#.*", "", line) for line in lines.splitlines() if line]

    def commands(self, part):
        inline = re.findall(r"`((?:fanwise|rabbitmqctl) [^`]+)`", self.parts[part])
        return self.in_blocks(part) + [text_of(it) for it in inline]

    def says(self, part, sentence):
        check(sentence in text_of(self.parts[part]), f"{self.alert}: {part} does not say: {sentence}")

    def ask(self, part, command, names):
        """Runs a command of the entry in the shell of a worker, with these names for its examples."""
        check(command in self.commands(part), f"{self.alert}: {part} has no command: {command}")
        self.left.discard(command)
        for example, name in names.items():
            command = re.sub(rf"(?<![\w-]){example}(?![\w-])", name, command)
        return self.world.shell(command)

    def run(self, part, command, *shown, code=0, **names):
        """Runs a command, which must end with this code and show these patterns."""
        ended, said = self.ask(part, command, names)
        check(ended == code, f"{self.alert}: {command} ends with {ended}, not {code}: {said}")
        for pattern in shown:
            check(re.search(pattern, said, re.MULTILINE), f"{self.alert}: {command} has no {pattern}: {said}")
        return said

    def until(self, part, command, pattern, **names):
        """Runs a command until it shows a pattern."""
        find = lambda: re.search(pattern, self.ask(part, command, names)[1], re.MULTILINE)
        return until(f"{pattern} in {command}", find)

    def end(self):
        """The fault is over. An alert that counts what happened within minutes ends after them."""
        check(not self.left, f"{self.alert}: nobody ran {self.left}")
        prometheus = self.world.prometheus
        rule = RULES.split(f"- alert: {self.alert}\n")[1].split("- alert:")[0]
        if counted := re.search(r"increase\(.*?\[(\d+)m\]", rule):
            self.says("Over", f"The alert ends {counted[1]} minutes later.")
            until(f"silence of {self.alert}", lambda: not prometheus.now(self.alert, self.labels))
        else:
            until(f"the end of {self.alert}", lambda: not prometheus.firing(self.alert, self.labels))
        print(f"  {self.world.clock()} {self.alert}: over", flush=True)


# --- the faults -----------------------------------------------------------------------------------


def users(count, prefix="u"):
    return [f"{prefix}{number}" for number in range(count)]


def provoke(world):
    """The faults of single targets and jobs, all at once: their alerts need some seconds."""
    world.send("broadcast", "im", users(BROADCAST), "--priority high")
    world.send("away", "away", users(50))
    world.send("ill-1", "ill", users(100))
    world.send("old", "old", users(30))
    world.send("shop", "shop", users(20, "gone") + users(10))
    world.send("cloud-1", "cloud", users(5))
    world.publish("notice", "Hello", "ana")
    world.publish("notice", "Other", "ana")


def certificate_expires(world):
    entry = Entry(world, "CertificateExpires")
    entry.run("Cause", "openssl x509 -noout -enddate -in gateway.crt", "notAfter=")
    entry.says("Do", "Write the new certificate and key to the two files.")
    world.certificate(days=365)
    entry.says("Over", "when the metric shows the new date")
    days = "(fanwise_certificate_expires_timestamp_seconds - time()) / 86400 > 300"
    until("the new date", lambda: world.prometheus.finds(days))
    served = ssl.get_server_certificate(("127.0.0.1", 9700))
    check(served == (world.work / "gateway.crt").read_text(), "the gateway shows another certificate")
    entry.end()


def rejected_messages(world):
    entry = Entry(world, "RejectedMessages")
    entry.run("Cause", "fanwise dead rejected", r"notice")
    job = {"v": 1, "client_msg_no": "notice", "message": {"type": "text", "text": "Other"}}
    job |= {"audience": {"users": ["ana"]}}
    for key, code, said in (("notice", 65, "its key belongs to another message"), ("notice-2", 0, "")):
        (world.work / "job.json").write_text(json.dumps(job | {"client_msg_no": key}))
        entry.run("Do", "fanwise send --dry-run --job job.json", said, code=code)
    entry.says("Do", "publish them again once they are corrected")
    world.publish("notice-2", "Other", "ana")
    world.completed("notice-2")
    entry.run("Do", "rabbitmqctl purge_queue fanwise.rejected.v1")
    entry.run("Cause", "fanwise dead rejected", r"\AREJECTED .*\n\Z")
    entry.says("Over", "when no new message is rejected")
    entry.end()


def config_fault(world):
    entry = Entry(world, "ConfigFault")
    entry.run("Cause", "fanwise job list --state running", r"cloud +parked .* cloud-1$")
    entry.run("Cause", "fanwise job show JOB", r"^hindered by +job is parked .* config 401", JOB="cloud-1")
    # A second job meets the same fault.
    world.send("cloud-2", "cloud", users(5, "v"))
    entry.until("Cause", "fanwise target list", r"^cloud .* parked until \S+ +config 401")
    entry.until("Cause", "fanwise doctor", r"^FAIL +target +cloud: .*refuses the token")
    entry.run("Cause", "fanwise config show", r"^targets.cloud.token\b")

    entry.says("Do", "Correct the configuration, check it, and restart the workers one after the other")
    world.config.write_text(world.config.read_text().replace('"wrong"', '"right"'))
    entry.run("Do", "fanwise config check")
    entry.until("Do", "fanwise doctor", r"^ok +target +cloud")
    for name in ("worker-1", "worker-2"):
        world.running[name].terminate()
        check(world.running[name].wait(BOUND) == 0, f"{name} does not drain: {world.log(name)}")
        world.role(name)
    entry.run("Do", "fanwise job resume JOB", JOB="cloud-1")
    entry.run("Do", "fanwise target unpark im", im="cloud")
    entry.until("Over", "fanwise doctor", r"^ok +target +cloud")
    entry.until("Over", "fanwise target list", r"^cloud .* moving")
    world.completed("cloud-1")
    world.completed("cloud-2")
    entry.end()


def dead_letters_rising(world):
    entry = Entry(world, "DeadLettersRising", target="shop")
    entry.run("Cause", "fanwise dead list --since 1h", r"^gone0 +failed +permanent +1 +400 +recipient refused")
    listed = entry.run("Cause", "fanwise dead list --class permanent --json")
    check(len(json.loads(listed)) == 20, f"the dead letters: {listed}")
    story = r"^gone7: failed, .*recipient refused"
    entry.run("Cause", "fanwise job recipient JOB USER", story, JOB="shop", USER="gone7")
    entry.says("Do", "Repair what the codes say")
    world.faults("shop", refuse_prefix=None)
    entry.run("Do", "fanwise dead redrive --job JOB --dry-run", r"^20 recipient", JOB="shop")
    entry.run("Do", "fanwise dead redrive --job JOB", JOB="shop")
    world.completed("shop~r1")
    check(world.job("shop~r1")["accounts"]["sent"] == 20, "the redrive did not arrive")
    entry.run("Do", "fanwise dead purge --job JOB --yes", JOB="shop")
    entry.says("Over", "when no new letters arrive")
    entry.end()


def uncertain_rising(world):
    entry = Entry(world, "UncertainRising", target="old")
    entry.run("Cause", "fanwise dead list --outcome uncertain --since 1h", r"^u\d+ +uncertain +uncertain")
    entry.run("Cause", "fanwise target list", r"^old .* hold +moving")
    entry.says("Do", "Repair the backend")  # its faults were counted
    doubtful = world.job("old")["accounts"]["uncertain"]
    entry.run("Do", "fanwise job uncertain JOB", r"^u\d+", JOB="old")
    # The mock has all of them; a second message is what the decision about the others means.
    got = [json.loads(line)["recipient"] for line in (world.work / "old.messages").read_text().splitlines()]
    (world.work / "got.txt").write_text("\n".join(got[:15]))
    entry.run("Do", "fanwise job uncertain JOB --resolve sent --file got.txt", JOB="old")
    left = world.job("old")["accounts"]["uncertain"]
    check(0 < left < doubtful, f"{doubtful} uncertain, then {left}")
    entry.run("Do", "fanwise dead redrive --job JOB --uncertain", JOB="old")
    world.completed("old~r1")
    check(world.job("old~r1")["accounts"]["sent"] == left, "the redrive sends to others")
    entry.says("Over", "when no new uncertain recipients arrive")
    entry.end()


def error_ratio(world):
    entry = Entry(world, "ErrorRatio", target="ill")
    entry.run("Cause", "fanwise target list", r"^ill .* breaker 503: ")
    entry.run("Cause", "fanwise dead list --since 1h")
    entry.run("Cause", "fanwise job show JOB", r"^hindered by .* breaker 503: ", JOB="ill-1")
    transient = 'sum(fanwise_calls_total{target="ill",class="transient"}) > 10'
    check(world.prometheus.finds(transient), "the class of the answers is not transient")
    entry.says("Do", "`transient`: look at the backend.")
    world.faults("ill", error_503=None)
    entry.run("Do", "fanwise limits set target im 200/s --expires-in 1h", im="ill")
    world.completed("ill-1")
    world.send("ill-2", "ill", users(1200, "v"))
    entry.says("Over", "when the ratio of the alert stays below its threshold")
    entry.end()


def breaker_open(world):
    entry = Entry(world, "BreakerOpen", target="away")
    refused = r"unreachable refused: .*Connection refused"
    entry.run("Cause", "fanwise target list", rf"^away .* {refused}")
    entry.run("Cause", "fanwise dead list --since 1h --class transient")
    entry.says("Do", "Repair the backend.")
    world.mock("away")
    entry.until("Over", "fanwise target list", r"^away .* moving")
    world.completed("away")
    entry.end()


def target_parked_long(world):
    entry = Entry(world, "TargetParkedLong", target="busy")
    entry.run("Cause", "fanwise target list", r"^busy .* parked until \S+ +throttled 429")
    entry.until("Cause", "fanwise doctor", r"^ok +target +busy")
    entry.says("Do", "| `throttled` | nothing, or lower `targets.NAME.limit`: the backend asked for a pause |")
    world.faults("busy", error_429=None)
    entry.run("Do", "fanwise target unpark im", im="busy")
    entry.until("Over", "fanwise target list", r"^busy .* moving")
    entry.says("Over", "The log says `target im is unparked`, or `target im moves again` if it was not unparked.")
    until("the line of the log", lambda: "target busy is unparked" in world.log("worker-1"))
    world.completed("busy")
    entry.end()


# --- the faults of all ----------------------------------------------------------------------------


def broker_blocked(world):
    world.servers("ctl", "set_vm_memory_high_watermark", "0")
    # An alarm reaches only those who publish.
    check(world.post("blocked")[0] == 503, "the gateway accepts a job that cannot be stored")
    entry = Entry(world, "BrokerBlocked")
    entry.run("Cause", "fanwise doctor", r"^FAIL +broker +takes no messages", code=69)
    entry.run("Cause", "rabbitmqctl status", r"^Memory alarm on node")
    entry.run("Cause", "fanwise topology show", r"^fanwise\.jobs\.normal\.v1 +0 +2")
    entry.says("Do", "Free disk or memory on the broker's nodes, or raise its limits.")
    world.servers("ctl", "set_vm_memory_high_watermark", "absolute", "1GiB")
    entry.says("Over", "when the alarm is gone and `fanwise_broker_blocked` is 0")
    check("Memory alarm" not in world.ask("rabbitmqctl status"), "the alarm stays")
    entry.end()


def ledger_down(world):
    world.servers("kill-redis")
    entry = Entry(world, "LedgerDown")
    entry.says("Users", "the HTTP interface refuses them with 503 and `Retry-After`")
    status, headers = world.post("refused")
    check(status == 503 and headers["retry-after"], f"the gateway answers {status}")
    entry.says("Users", "Jobs are accepted over AMQP and wait")
    world.publish("by-amqp", "Hello", "ana", "bob")
    entry.run("Cause", "fanwise doctor", r"^FAIL +ledger .*Connection refused", code=69)
    entry.run("Cause", "fanwise healthcheck", r"ledger: the ledger is not reachable", code=69)
    check(not world.prometheus.firing("NoWorker", {}), "NoWorker fires besides LedgerDown")
    entry.says("Do", "Repair Redis.")
    world.servers("start-redis")
    entry.until("Over", "fanwise doctor", r"^ok +ledger")
    entry.says("Over", "The lanes move on by themselves.")
    world.moves()
    entry.end()
    world.post("refused")


def broker_down(world):
    queues = len(world.ask("fanwise topology show").splitlines())
    world.servers("kill-rabbitmq")
    entry = Entry(world, "BrokerDown")
    entry.says("Users", "The HTTP interface answers 503")
    check(world.post("refused-too")[0] == 503, "the gateway accepts a job without a broker")
    entry.run("Cause", "fanwise doctor", r"^FAIL +broker .*Connection refused", code=69)
    entry.says("Do", "Bring a majority of the nodes back. Workers connect again by themselves.")
    world.servers("start-rabbitmq")
    entry.until("Over", "fanwise doctor", r"^ok +broker")
    shown = entry.run("Over", "fanwise topology show")
    check(len(shown.splitlines()) == queues, f"not all queues are back: {shown}")
    world.moves()
    entry.end()


def reconnect_loop(world):
    def sessions():
        found = world.prometheus.finds("max(fanwise_broker_sessions_total)")
        return float(found[0]["value"][1]) if found else 0

    begun = until("a figure of the sessions", sessions)
    for number in range(1, 4):  # and one after the restart of the broker
        world.servers("ctl", "close_all_connections", "a proxy closes what is idle")
        until("a new session", lambda: sessions() >= begun + number)
    entry = Entry(world, "ReconnectLoop")
    entry.says("Cause", "The log of a worker says why each connection ended.")
    check("a proxy closes what is idle" in world.log("worker-1"), "the log does not say why")
    entry.run("Cause", "fanwise doctor", r"^ok +broker")
    entry.run("Cause", "fanwise topology apply")
    entry.says("Do", "Remove the cause.")
    entry.says("Over", "when workers open no new connection")
    world.moves()
    entry.end()


def no_worker(world):
    right = world.config.read_text()
    world.config.write_text(right.replace("limit =", "limitt ="))
    for name in ("worker-1", "worker-2"):
        world.running[name].kill()
        world.running[name].wait()
    entry = Entry(world, "NoWorker")
    entry.run("Cause", "fanwise healthcheck", "Connection refused", code=69)
    entry.run("Cause", "fanwise config check", r"targets\.im\.limitt", code=78)
    entry.says("Do", "If they end at once, read the last lines of their log")
    worker = world.start("worker-1", world.fanwise, "worker")
    check(worker.wait(BOUND) == 78, "a worker takes a wrong configuration")
    check("targets.im.limitt" in world.log("worker-1")[-1500:], "the log does not name the key")
    world.config.write_text(right)
    entry.until("Cause", "fanwise doctor", r"^warn +workers +no worker takes jobs")
    entry.run("Cause", "fanwise topology show", r"^fanwise\.jobs\.normal\.v1 +\d+ +0$")
    entry.says("Do", "Start workers.")
    for name in ("worker-1", "worker-2"):
        world.role(name)
    entry.run("Over", "fanwise healthcheck")
    entry.run("Over", "fanwise job list --state running", r" im +running .* broadcast$")
    world.moves()
    entry.end()


def time_lag_high(world):
    """The broadcast itself waits: its limit is too low. This ends the run."""
    entry = Entry(world, "TimeLagHigh", target="im", priority="high")
    entry.run("Cause", "fanwise job list --state running", r" im +running .* broadcast$")
    hindered = r"^hindered by +.*limit"
    entry.run("Cause", "fanwise job show JOB", hindered, JOB="broadcast")
    entry.run("Cause", "fanwise limits show", r"^target +im +.*20/s")
    entry.says("Do", "A limit holds the job back: raise it")
    entry.run("Do", "fanwise limits set target im 3000/s")
    world.completed("broadcast")
    entry.says("Over", "when the age of the oldest waiting recipient falls below the threshold")
    entry.end()


SCENES = [
    certificate_expires, rejected_messages, dead_letters_rising, uncertain_rising, error_ratio,
    target_parked_long, breaker_open, config_fault,
    broker_blocked, ledger_down, broker_down, reconnect_loop, no_worker, time_lag_high,
]


# --- the run --------------------------------------------------------------------------------------


def accounts(world):
    """Every job completed with exact accounts, and the mocks got as much, nobody twice."""
    sent, calls = collections.Counter(), 0
    for job in json.loads(world.ask("fanwise job list --limit 1000 --json")):
        world.completed(job["job"])
        verified = json.loads(world.ask(f"fanwise job verify {job['job']} --json"))
        check(verified["exact"], f"{job['client_msg_no']}: {verified}")
        its = verified["accounts"]
        settled = sum(count for name, count in its.items() if name != "total")
        check(settled == its["total"], f"{job['client_msg_no']}: {its}")
        # A lost reply is a message that arrived.
        sent[job["target"]] += its["sent"] + its["uncertain"]
    for name in MOCKS:
        lines = (world.work / f"{name}.messages").read_text().splitlines()
        got = [json.loads(line) for line in lines]
        got = collections.Counter((it["client_msg_no"], it["recipient"]) for it in got if not it["replay"])
        check(max(got.values()) == 1, f"{name}: somebody got a message twice")
        check(len(got) == sent[name], f"{name}: the mock got {len(got)} messages, {sent[name]} were sent")
        calls += len(got)
    return calls


def follow(work, fanwise):
    world = System(work, fanwise)
    world.certificate(days=7)
    world.mock("im", "--wukongim", "v3")
    world.mock("busy", "--fault", "error-429=100%", "--retry-after", "900")
    world.mock("ill", "--fault", "error-503=100%")
    world.mock("old", "--fault", "reply-lost=x20")
    world.mock("cloud", "--token", "right")
    world.mock("shop", "--refuse-prefix", "gone")
    world.role("worker-1")
    # `TargetParkedLong` looks back far, so Prometheus sees its target only parked.
    world.send("busy", "busy", users(50))
    until("a parked target", lambda: "throttled 429" in world.ask("fanwise target list"))
    world.begin("worker-2")
    world.begin("gateway")
    world.prometheus = Prometheus(world)
    world.ready("gateway")
    provoke(world)
    try:
        for scene in SCENES:
            scene(world)
        messages = accounts(world)
    except BaseException:
        for name in ADMIN:
            print(f"--- the log of {name}, its end:\n{world.log(name)[-3000:]}")
        raise
    print(f"runbook: {len(SCENES)} entries, {messages} messages, {world.clock().strip()}: passed")


def main():
    if sys.argv[1] == INSIDE:
        loopback_up()
        follow(Path(sys.argv[2]), Path(sys.argv[3]))
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory(prefix="fanwise-runbook.") as work:
        sys.exit(run_in_own_network(__file__, work, Path(sys.argv[1]).resolve()))


main()
