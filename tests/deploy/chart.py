#!/usr/bin/env python3
"""Renders deploy/helm/fanwise with Helm's own engine and checks every document.

  chart.py FANWISE NODE_MODULES    FANWISE: the binary; NODE_MODULES: where the models of KEDA and
                                   of the Prometheus operator are installed

Kubernetes' own kinds must fit the published schemas of the oldest and the newest version without
unknown fields; the others must fit the published models. The configuration in values.yaml must pass
`fanwise config check`.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import helm_python as helm
import kubernetes_validate
import yaml

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "deploy/helm/fanwise"
EXAMPLES = ROOT / "deploy/helm/examples"
VERSIONS = ("1.27", "1.37")
# The examples use what newer versions have, and kinds of operators that publish no models.
NEWEST = ("1.37",)
OPERATORS = ("rabbitmq.com/v1beta1",)
EVERYTHING = {
    "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
    "prometheusRule": {"enabled": True},
    "runbookUrl": "https://wiki.example.com/runbook",
    "dashboards": {"enabled": True},
    "networkPolicy": {"egress": [{"ports": [{"port": 5672}]}], "httpFrom": [{"podSelector": {}}]},
    "imagePullSecrets": [{"name": "registry"}],
    "env": [{"name": "FANWISE_LOG__LEVEL", "value": "debug"}],
    "podLabels": {"team": "im"},
    "nodeSelector": {"disk": "fast"},
    "tolerations": [{"key": "im", "operator": "Exists"}],
    "affinity": {"nodeAffinity": {}},
    "priorityClassName": "high",
    "service": {"type": "LoadBalancer", "annotations": {"a": "b"}},
}
CASES = {
    "defaults": {},
    "keda": EVERYTHING
    | {"worker": {"autoscaling": {"type": "keda", "keda": {"rabbitmqSecretKey": "management-url"}}}},
    "hpa": {"worker": {"autoscaling": {"type": "hpa"}}},
    "serve": EVERYTHING
    | {"worker": {"enabled": False}, "gateway": {"enabled": False}, "serve": {"enabled": True}},
}
REFUSED = {
    "a misspelt value": {"worker": {"replica": 3}},
    "serve beside workers": {"serve": {"enabled": True}},
    "no Secret": {"existingSecret": ""},
}
MODELS = {
    "keda.sh/v1alpha1": "@kubernetes-models/keda",
    "monitoring.coreos.com/v1": "@kubernetes-models/prometheus-operator",
}


def check(true, what):
    if not true:
        sys.exit(f"chart.py: {what}")


def render(chart, values):
    files = chart.render(values, name="fanwise", namespace="im")
    # Helm's own reader of YAML is that of Kubernetes; this one knows the same texts as numbers.
    documents = [
        document
        for path, text in files.items()
        if not path.endswith("NOTES.txt")
        for document in yaml.safe_load_all(text)
        if document
    ]
    return documents, files["fanwise/templates/NOTES.txt"]


def check_schemas(case, documents, modules, versions=VERSIONS):
    for document in documents:
        where = f"{case}: {document['kind']} {document['metadata']['name']}"
        if document["apiVersion"] in (*MODELS, *OPERATORS):
            continue
        for version in versions:
            try:
                kubernetes_validate.validate(document, version, strict=True)
            except Exception as wrong:  # its errors have no common class
                sys.exit(f"chart.py: {where}, Kubernetes {version}: {wrong}")
    others = [it for it in documents if it["apiVersion"] in MODELS]
    script = f"""
      const documents = {json.dumps(others)}, models = {json.dumps(MODELS)};
      for (const it of documents) {{
        const kinds = await import(`${{models[it.apiVersion]}}/${{it.apiVersion}}`);
        new kinds[it.kind](it).validate();
      }}"""
    # Modules are looked for from the current folder.
    node = ["node", "--input-type=module", "-e", script]
    done = subprocess.run(node, cwd=modules.parent, text=True, capture_output=True)
    check(done.returncode == 0, f"{case}: {done.stderr}")


def of_kind(documents, kind):
    return {it["metadata"]["name"]: it for it in documents if it["kind"] == kind}


def check_pods(case, documents):
    pods = {**of_kind(documents, "Deployment"), **of_kind(documents, "StatefulSet")}
    check(pods, f"{case}: no pods")
    for name, it in pods.items():
        pod = it["spec"]["template"]
        spec, container = pod["spec"], pod["spec"]["containers"][0]
        where = f"{case}: {name}"
        drain = next(e["value"] for e in container["env"] if e["name"].endswith("DRAIN_DEADLINE"))
        grace = spec["terminationGracePeriodSeconds"]
        check(grace > int(drain.removesuffix("s")) + 5, f"{where}: {grace} s end before the drain")
        check(spec["securityContext"]["runAsNonRoot"], f"{where}: may run as root")
        check(container["securityContext"]["readOnlyRootFilesystem"], f"{where}: root is writable")
        check(container["resources"]["limits"]["memory"], f"{where}: no limit of memory")
        labels = pod["metadata"]["labels"]
        selector = it["spec"]["selector"]["matchLabels"]
        check(selector.items() <= labels.items(), f"{where}: selects other pods")
        mounted = {v["name"] for v in spec["volumes"]}
        mounted |= {v["metadata"]["name"] for v in it["spec"].get("volumeClaimTemplates", [])}
        check({v["name"] for v in container["volumeMounts"]} == mounted, f"{where}: volumes differ")
    for name, service in of_kind(documents, "Service").items():
        selector = service["spec"]["selector"]
        labels = [it["spec"]["template"]["metadata"]["labels"] for it in pods.values()]
        check(any(selector.items() <= it.items() for it in labels), f"{case}: {name} selects no pod")


def check_configuration(documents, fanwise):
    """As the pods of the release see it: the files of the Secret that it names are there."""
    text = of_kind(documents, "ConfigMap")["fanwise"]["data"]["fanwise.toml"]
    secrets = {
        "broker-url": "amqp://fanwise:secret@rabbitmq:5672/%2f",
        "ledger-url": "redis://:secret@redis:6379/0",
        "gateway-token": "a-token-of-this-test",
    }
    with tempfile.TemporaryDirectory(prefix="fanwise-chart.") as folder:
        for name, value in secrets.items():
            Path(folder, name).write_text(value)
        check("/run/secrets/fanwise/" in text, "the configuration names no file of the Secret")
        config = Path(folder, "fanwise.toml")
        config.write_text(text.replace("/run/secrets/fanwise", folder))
        clean = {k: v for k, v in os.environ.items() if not k.startswith("FANWISE_")}
        subprocess.run(
            [fanwise, "config", "check", "--config", config], env=clean, check=True, stdout=subprocess.DEVNULL
        )


def check_monitoring(documents):
    rules = of_kind(documents, "PrometheusRule")["fanwise"]["spec"]["groups"]
    dashboards = [it for name, it in of_kind(documents, "ConfigMap").items() if "dashboard" in name]
    there = list((ROOT / "deploy/grafana").rglob("*.json"))
    check(len(dashboards) == len(there), f"{len(dashboards)} dashboards of {len(there)}")
    for it in dashboards:
        for text in it["data"].values():
            json.loads(text)
    files = [yaml.safe_load(it.read_text()) for it in (ROOT / "deploy/prometheus").rglob("*.yml")]
    groups = [g["name"] for it in files for g in it.get("groups", [])]
    check(sorted(g["name"] for g in rules) == sorted(groups), f"rules: {rules}")
    alerts = [rule["annotations"]["runbook_url"] for g in rules for rule in g["rules"] if "alert" in rule]
    links = alerts + re.findall(r"docs/runbook\.md|https://wiki\S+?runbook", json.dumps(dashboards))
    check(len(alerts) > 20 and len(links) > len(alerts), f"links: {links}")
    check(all(it.startswith(EVERYTHING["runbookUrl"]) for it in links), f"links: {links}")


def main():
    fanwise, modules = Path(sys.argv[1]).resolve(), Path(sys.argv[2])
    found = helm.lint(str(CHART))
    # An icon is for lists of charts.
    messages = [it for it in found["messages"] if "icon is recommended" not in it["error"]]
    check(not messages and not found["errors"], f"lint: {messages} {found['errors']}")
    counted = 0
    with helm.Chart.load(str(CHART)) as chart:
        for case, values in CASES.items():
            documents, notes = render(chart, values)
            check_schemas(case, documents, modules)
            check_pods(case, documents)
            check(re.search("exec (deployment|statefulset)/fanwise-", notes), f"{case}: {notes}")
            counted += len(documents)
            if case == "defaults":
                check_configuration(documents, fanwise)
            if case == "keda":
                check_monitoring(documents)
        for example in sorted(EXAMPLES.glob("values-*.yaml")):
            documents, _ = render(chart, yaml.safe_load(example.read_text()))
            check_schemas(example.name, documents, modules)
            check_pods(example.name, documents)
            counted += len(documents)
        for example in sorted(EXAMPLES.glob("r*.yaml")):
            documents = list(yaml.safe_load_all(example.read_text()))
            check_schemas(example.name, documents, modules, NEWEST)
            counted += len(documents)
        for what, values in REFUSED.items():
            try:
                chart.validate_schema(values)
                chart.render(values, name="fanwise", namespace="im")
            except helm.HelmError:
                continue
            sys.exit(f"chart.py: accepted: {what}")
    print(f"chart: {counted} documents: passed")


main()
