#!/usr/bin/env python3
"""Checks the systemd units, and installs and runs the Debian package.

  packages.py DEB     DEB: what deploy/packages/deb has built

The package is installed below a folder of its own, as dpkg does it on a new machine, and the binary
runs from there with an empty environment.
"""

import gzip
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
UNITS = sorted((ROOT / "deploy/systemd").glob("*.service"))
EXPOSURE_MAX = 2.0
BOUND = 30  # seconds until `serve` must be ready


def check(true, what):
    if not true:
        sys.exit(f"packages.py: {what}")


def run(command, **options):
    return subprocess.run(command, text=True, capture_output=True, **options)


def check_units():
    check(len(UNITS) == 3, f"units: {UNITS}")
    for unit in UNITS:
        done = run(["systemd-analyze", "security", "--offline=true", "--no-pager", unit])
        level = float(done.stdout.split("Overall exposure level for")[1].split(": ")[1].split()[0])
        check(level <= EXPOSURE_MAX, f"{unit.name}: exposure {level}, at most {EXPOSURE_MAX}\n{done.stdout}")


def check_installed_units(root):
    """With the targets that every system has, and nothing else."""
    units = root / "usr/lib/systemd/system"
    for name in ("sysinit", "basic", "multi-user", "network-online", "shutdown"):
        (units / f"{name}.target").write_text("[Unit]\n")
    names = [it.name for it in UNITS]
    done = run(["systemd-analyze", "verify", "--man=no", f"--root={root}", *names])
    check(done.returncode == 0 and not done.stderr, f"verify: {done.stdout}{done.stderr}")


def install(deb, root):
    database = root / "var/lib/dpkg"
    (database / "updates").mkdir(parents=True)
    (database / "info").mkdir()
    (database / "status").touch()
    dpkg = ["dpkg", f"--root={root}", f"--log={root}/dpkg.log", "--force-script-chrootless"]
    # The packages that it needs are those of this machine.
    done = run([*dpkg, "--force-depends", "--install", deb])
    check(done.returncode == 0, f"dpkg --install: {done.stdout}{done.stderr}")
    return dpkg


def check_files(root):
    doc = root / "usr/share/doc/fanwise"
    example = (doc / "fanwise.example.toml").read_bytes()
    check(example == (ROOT / "deploy/fanwise.example.toml").read_bytes(), "another example")
    notices = gzip.decompress((doc / "THIRD-PARTY.gz").read_bytes()).decode()
    for crate in ("tokio", "rustls", "redb", "ring", "minijinja"):
        check(f"\n{crate} " in notices, f"THIRD-PARTY does not name {crate}")
    check("Permission is hereby granted" in notices, "THIRD-PARTY has no texts")
    config = root / "etc/fanwise/fanwise.toml"
    check(config.stat().st_mode & 0o077 == 0, "others can read fanwise.toml")
    pages = root / "usr/share/man/man1"
    for page in ("fanwise", "fanwise-send", "fanwise-job-verify"):
        check((pages / f"{page}.1.gz").exists(), f"no man page {page}")
    page = gzip.decompress((pages / "fanwise-send.1.gz").read_bytes()).decode()
    check("client\\-msg\\-no" in page, "the man page of send lacks an option")
    share = root / "usr/share"
    bash = share / "bash-completion/completions/fanwise"
    script = f'source {bash}; COMP_WORDS=(fanwise job ver); COMP_CWORD=2; _fanwise fanwise ver job; echo "${{COMPREPLY[*]}}"'
    completed = run(["bash", "-c", script]).stdout
    check(completed.strip() == "verify", f"completion of `job ver`: {completed!r}")
    for path in ("zsh/vendor-completions/_fanwise", "fish/vendor_completions.d/fanwise.fish"):
        check("redrive" in (share / path).read_text(), f"{path} is incomplete")


def free_ports():
    ports = run([ROOT / "tests/servers", "ports", "2"], check=True)
    return ports.stdout.split()


def check_run(root):
    fanwise = root / "usr/bin/fanwise"
    admin, gateway = free_ports()
    environment = {
        "PATH": "/usr/bin:/bin",
        "FANWISE_CONFIG": str(root / "etc/fanwise/fanwise.toml"),
        "FANWISE_EMBEDDED__DIR": str(root / "var/lib/fanwise"),
        "FANWISE_ADMIN__LISTEN": f"127.0.0.1:{admin}",
        "FANWISE_GATEWAY__LISTEN": f"127.0.0.1:{gateway}",
    }
    done = run([fanwise, "serve"], env=environment)
    check(done.returncode == 78 and "targets" in done.stderr, f"no target: {done.stderr}")

    config = Path(environment["FANWISE_CONFIG"])
    text = config.read_text()
    start, end = text.index("#[targets.im]"), text.index("\n\n", text.index("#[targets.im]"))
    config.write_text(text[:start] + text[start:end].replace("#", "") + text[end:])
    with open(root / "serve.log", "w") as log:
        serve = subprocess.Popen([fanwise, "serve"], env=environment, stdout=log, stderr=log)
    end = time.monotonic() + BOUND
    while run([fanwise, "healthcheck"], env=environment).returncode != 0:
        log = (root / "serve.log").read_text()
        check(serve.poll() is None and time.monotonic() < end, f"serve is not ready: {log}")
        time.sleep(0.05)
    send = [fanwise, "send", "--client-msg-no", "a", "--text", "Hello", "ana", "bob"]
    done = run(send, env=environment)
    check(done.returncode == 0, f"send: {done.stderr}")
    jobs = json.loads(run([fanwise, "job", "list", "--json"], env=environment).stdout)
    check(any(it["client_msg_no"] == "a" for it in jobs), f"jobs: {jobs}")
    # As systemd stops it: it drains, and ends well.
    serve.terminate()
    check(serve.wait(BOUND) == 0, "serve does not drain")


def main():
    deb = Path(sys.argv[1]).resolve()
    check_units()
    with tempfile.TemporaryDirectory(prefix="fanwise-deb.") as folder:
        root = Path(folder)
        dpkg = install(deb, root)
        check_files(root)
        check_installed_units(root)
        check_run(root)
        done = run([*dpkg, "--purge", "fanwise"])
        check(done.returncode == 0, f"dpkg --purge: {done.stderr}")
        check(not (root / "usr/bin/fanwise").exists(), "purge leaves the binary")
        check((root / "var/lib/fanwise/fanwise.redb").exists(), "purge removes the data")
    print(f"packages: {len(UNITS)} units, {deb.name}: passed")


main()
