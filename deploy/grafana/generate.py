#!/usr/bin/env python3
"""Writes the Grafana dashboards in this folder: `generate.py`; `generate.py --check` compares them.

A dashboard is a list of rows, a row a list of panels. Every panel says what to do when it is red. In
expressions `@n` stands for the filter by namespace and `@t` for namespace and target. Figures of the
cluster come from one process, for some seconds from two, so they are read with `max`.
"""

import json
import pathlib
import sys

NAMESPACE = 'namespace=~"$namespace"'
TARGET = NAMESPACE + ', target=~"$target"'
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
GREEN, ORANGE, RED = "green", "orange", "red"


def rate(metric, by, filters="@t"):
    return f"sum by ({by}) (rate({metric}{{{filters}}}[$__rate_interval]))"


def quantile(q, metric, by="", filters="@n"):
    labels = "le" + (f", {by}" if by else "")
    return f"histogram_quantile({q}, {rate(metric + '_bucket', labels, filters)})"


def quantiles(metric, filters="@n"):
    return [(quantile(q, metric, filters=filters), f"p{int(q * 100)}") for q in (0.5, 0.95, 0.99)]


def panel(kind, title, queries, help, unit="short", alert=None, steps=None, width=8, options=None, top=None, **custom):
    """steps: (orange from, red from), or (red below,); queries: an expression, or (expression, legend) pairs."""
    queries = [(queries, "")] if isinstance(queries, str) else queries
    colours = [(RED, None), (GREEN, steps[0])] if steps and len(steps) == 1 else [(GREEN, None), *zip((ORANGE, RED), steps or ())]
    link = {"title": f"Runbook: {alert}", "url": f"${{runbook}}#{alert.lower()}", "targetBlank": True} if alert else None
    instant = kind in ("stat", "table")
    return {
        "type": kind,
        "title": title,
        "description": help + (f" When it is red, follow {alert} in the runbook." if alert else ""),
        "links": [link] if link else [],
        "datasource": SOURCE,
        "targets": [
            {
                "refId": chr(ord("A") + index),
                "datasource": SOURCE,
                "expr": expression.replace("@t", TARGET).replace("@n", NAMESPACE),
                "legendFormat": legend or "__auto",
                "instant": instant,
                "range": not instant,
                "format": "table" if kind == "table" else "heatmap" if kind == "heatmap" else "time_series",
            }
            for index, (expression, legend) in enumerate(queries)
        ],
        "fieldConfig": {
            "defaults": {"unit": unit, "min": 0, "max": top, "thresholds": {"mode": "absolute", "steps": [{"color": c, "value": v} for c, v in colours]}, "custom": custom},
            "overrides": [],
        },
        "options": options or {},
        "width": width,
    }


def stat(title, query, help, steps=None, width=4, **more):
    options = {"reduceOptions": {"calcs": ["lastNotNull"]}, "colorMode": "background" if steps else "value", "graphMode": "area"}
    return panel("stat", title, query, help, steps=steps, width=width, options=options, **more)


def graph(title, queries, help, stack=False, steps=None, **more):
    options = {"legend": {"displayMode": "table", "placement": "bottom", "calcs": ["lastNotNull", "max"]}, "tooltip": {"mode": "multi", "sort": "desc"}}
    custom = {"fillOpacity": 20 if stack else 5, "showPoints": "never", "stacking": {"mode": "normal" if stack else "none"}}
    if steps:
        custom["thresholdsStyle"] = {"mode": "dashed"}
    return panel("timeseries", title, queries, help, steps=steps, options=options, **custom, **more)


def table(title, queries, help, columns, **more):
    made = panel("table", title, queries, help, **more)
    hidden = {name: True for name in ("Time", "__name__", "instance", "job")}
    made["transformations"] = [{"id": "merge", "options": {}}, {"id": "organize", "options": {"excludeByName": hidden, "renameByName": columns}}]
    return made


def states(title, queries, help, **more):
    return panel("state-timeline", title, queries, help, steps=(0.5, 1), options={"mergeValues": True, "showValue": "never"}, **more)


def heat(title, metric, help, filters, **more):
    return panel("heatmap", title, [(rate(metric + "_bucket", "le", filters), "{{le}}")], help, options={"yAxis": {"unit": "s"}}, **more)


def variable(name, label, query, **more):
    made = {"type": "query", "name": name, "label": label, "datasource": SOURCE, "definition": query, "query": {"query": query, "refId": name}, "refresh": 2, "sort": 1}
    return {**made, "includeAll": True, "multi": True, "allValue": ".*", "current": {"text": "All", "value": "$__all"}, **more}


VARIABLES = [
    {"type": "datasource", "name": "datasource", "label": "Data source", "query": "prometheus", "current": {}},
    variable("namespace", "Namespace", "label_values(fanwise_build_info, namespace)"),
    variable("target", "Target", 'label_values(fanwise_recipients_total{namespace=~"$namespace"}, target)'),
    variable("app", "App", 'label_values(fanwise_app_recipients_total{namespace=~"$namespace"}, app)'),
    {"type": "textbox", "name": "runbook", "label": "Runbook", "query": "docs/runbook.md", "current": {"text": "docs/runbook.md", "value": "docs/runbook.md"}},
]


def dashboard(name, title, rows):
    panels, y = [], 0
    for heading, row in rows:
        panels.append({"type": "row", "title": heading, "collapsed": False, "panels": [], "gridPos": {"h": 1, "w": 24, "x": 0, "y": y}})
        y, x, height = y + 1, 0, 0
        for made in row:
            width, tall = made.pop("width"), 4 if made["type"] == "stat" else 8
            if x + width > 24:
                x, y, height = 0, y + height, 0
            made["gridPos"] = {"h": tall, "w": width, "x": x, "y": y}
            x, height = x + width, max(height, tall)
            panels.append(made)
        y += height
    for number, made in enumerate(panels, 1):
        made["id"] = number
    others = {"type": "dashboards", "title": "Fanwise", "tags": ["fanwise"], "asDropdown": True, "includeVars": True, "keepTime": True}
    return {
        **{"uid": f"fanwise-{name}", "title": f"Fanwise: {title}", "tags": ["fanwise"], "links": [others]},
        **{"schemaVersion": 39, "version": 1, "editable": True, "timezone": "browser"},
        **{"refresh": "10s", "time": {"from": "now-1h", "to": "now"}, "annotations": {"list": []}},
        **{"templating": {"list": VARIABLES}, "panels": panels},
    }


PENDING = "max by (namespace, target, priority) (fanwise_recipients_pending{@t})"
AGE = "max by (namespace, target, priority) (fanwise_oldest_pending_age_seconds{@t})"
LIMIT = "target:fanwise_limit_recipients_per_second:max{@t}"
ERRORS = "target:fanwise_call_errors:ratio_rate5m{@t}"
PARKED = "max by (target, reason) (fanwise_target_parked{@t})"

OVERVIEW = [
    ("Is anybody waiting, for what, since when?", [
        stat("Oldest recipient waits", f"max({AGE})", "Age of the oldest job that is due, not paused and not complete.", unit="s", alert="TimeLagHigh", steps=(300, 900)),
        stat("Recipients pending", f"sum({PENDING})", "Recipients without an outcome, paused and scheduled jobs included."),
        stat("Parked targets", "count(max by (namespace, target) (fanwise_target_parked{@t}) == 1) or vector(0)", "Targets that take no calls now.", alert="TargetParkedLong", steps=(1, 2)),
        stat("Error ratio", f"max({ERRORS})", "Share of the calls of the last 5 minutes that did not do what they should, of the worst target.", unit="percentunit", alert="ErrorRatio", steps=(0.02, 0.1)),
        stat("Dead letters waiting", "max(fanwise_dead_letters_waiting{@n})", "Letters that nobody has redriven or purged. Export, redrive or purge them.", alert="DeadLettersRising"),
        stat("Workers", 'max(fanwise_processes{@n, role="worker"})', "Workers with a heartbeat in the last seconds.", alert="NoWorker", steps=(1,)),
        table("What waits", [(PENDING, ""), (AGE, "")], "Per target and priority: how many recipients wait, and how long the oldest one.", {"Value #A": "recipients", "Value #B": "oldest (s)"}, width=12, alert="TimeLagHigh"),
        states("Why: parked targets", [(PARKED + " == 1", "{{target}} {{reason}}")], "A bar is a time in which a target took no calls, with the reason.", width=12, alert="TargetParkedLong"),
    ]),
    ("How fast", [
        graph("Recipients by outcome", [(rate("fanwise_recipients_total", "outcome"), "{{outcome}}")], "Recipients per second that got their outcome.", unit="ops", stack=True),
        graph("Rate and limit", [(rate("fanwise_recipients_total", "target"), "{{target}}"), (LIMIT, "{{target}} limit")], "Below the limit while recipients wait: the target, the workers or the ledger are the bottleneck.", unit="ops", alert="RateFarBelowLimit"),
        graph("Age of the oldest", [(AGE, "{{target}} {{priority}}")], "A line that rises with the clock: nothing of that lane moves.", unit="s", alert="TimeLagHigh", steps=(300, 900)),
        graph("Calls by class", [(rate("fanwise_calls_total", "class"), "{{class}}")], "Everything but `done` is trouble: transient and throttled pass by themselves, config does not.", unit="ops", stack=True, alert="ErrorRatio"),
        graph("Jobs", [("max by (state) (fanwise_jobs{@n})", "{{state}}")], "Jobs that are not completed. Many accepted and none running: follow NoWorker.", stack=True),
        graph("Accept to outcome", quantiles("fanwise_accept_to_outcome_seconds"), "Time from acceptance to the outcome of a recipient.", unit="s"),
    ]),
    ("What it stands on", [
        stat("Ledger", "min(fanwise_ledger_up{@n})", "1 while every process can write to the ledger.", alert="LedgerDown", steps=(1,)),
        stat("Broker", "min(fanwise_broker_up{@n})", "1 while every process has a session with the broker.", alert="BrokerDown", steps=(1,)),
        stat("Broker takes messages", "1 - max(fanwise_broker_blocked{@n})", "0 while the broker is short of memory or disk.", alert="BrokerBlocked", steps=(1,)),
        stat("Accounts not exact", "sum(increase(fanwise_jobs_inconsistent_total{@n}[$__range]))", "Jobs whose counters and ledger differ.", alert="JobsInconsistent", steps=(1, 1)),
        stat("Panics", "sum(increase(fanwise_panics_total{@n}[$__range]))", "Tasks that panicked.", alert="Panics", steps=(1, 1)),
        stat("Unguarded sends", "sum(increase(fanwise_unguarded_sends_total{@t}[$__range]))", "Recipients that were sent to without a claim.", alert="UnguardedSends", steps=(1, 1)),
        table("Versions", "count by (version, commit) (fanwise_build_info{@n})", "Processes by version. More than one version: an update is under way, or has stopped half-way.", {"Value": "processes"}, width=24),
    ]),
]

TARGETS = [
    ("Speed", [
        graph("Rate and limit", [(rate("fanwise_recipients_total", "target"), "{{target}}"), (LIMIT, "{{target}} limit")], "The limit in force, live changes included.", unit="ops", width=12, alert="RateFarBelowLimit"),
        graph("Calls in flight", [("sum by (target) (fanwise_calls_in_flight{@t})", "{{target}}"), ("sum by (target) (fanwise_calls_in_flight_max{@t})", "{{target}} max")], "At the maximum: raise it or add workers.", width=12),
        graph("Waits for a limit", quantiles("fanwise_throttle_wait_seconds"), "Time that slices waited for a rate limit inside a delivery.", unit="s"),
        graph("Which limit decides", [('sum by (scope) (rate(fanwise_throttle_decisions_total{@n, result="limited"}[$__rate_interval]))', "{{scope}}")], "Leases that a limit reduced or delayed, by the limit.", unit="ops"),
        table("Limits in force", "max by (scope, name) (fanwise_limit_recipients_per_second{@n})", "Recipients per second. Change them with `fanwise limits set`.", {"Value": "recipients/s"}),
    ]),
    ("Answers", [
        graph("Calls by class", [(rate("fanwise_calls_total", "target, class"), "{{target}} {{class}}")], "Classes of the answers.", unit="ops", stack=True, alert="ErrorRatio"),
        graph("Error ratio", [(ERRORS, "{{target}}")], "Share of calls that are not `done`.", unit="percentunit", alert="ErrorRatio", steps=(0.02, 0.1)),
        graph("Not reached", [(rate("fanwise_unreached_calls_total", "target"), "{{target}}")], "Calls of which nothing left the worker: name, network, port or certificate of the target.", unit="ops", alert="TargetParkedLong"),
        graph("Duration of calls", [(quantile(q, "fanwise_call_duration_seconds", "target", "@t"), "{{target}} p" + str(int(q * 100))) for q in (0.5, 0.99)], "A backend that slows down lowers the rate.", unit="s", alert="RateFarBelowLimit"),
        heat("Duration of calls", "fanwise_call_duration_seconds", "Two bands: some calls go another way than the rest.", filters="@t"),
        graph("New connections", [('sum by (reused) (rate(fanwise_http_calls_total{@n}[$__rate_interval]))', "reused {{reused}}")], "Many calls on new connections: the backend or a proxy closes them.", unit="ops"),
    ]),
    ("Stops", [
        states("Parked", [(PARKED + " == 1", "{{target}} {{reason}}")], "Times in which a target took no calls.", width=12, alert="TargetParkedLong"),
        states("Paused by operators", [("max by (target) (fanwise_target_paused{@t})", "{{target}}")], "Resume with `fanwise target resume TARGET`.", width=12),
        graph("Parks", [("sum by (target, reason) (increase(fanwise_target_parks_total{@t}[$__rate_interval]))", "{{target}} {{reason}}")], "How often targets were parked. config: see ConfigFault.", alert="BreakerOpen"),
        graph("Retries", [(rate("fanwise_retries_total", "target"), "{{target}}")], "Recipients put on the ladder for another attempt.", unit="ops"),
        graph("Waits on the ladder", quantiles("fanwise_retry_delay_seconds"), "Time for which rests of slices were put on the ladder.", unit="s"),
    ]),
]

JOBS = [
    ("Jobs", [
        graph("Open jobs", [("max by (state) (fanwise_jobs{@n})", "{{state}}")], "Many accepted and none running: no worker takes jobs.", stack=True, alert="NoWorker"),
        graph("Messages by result", [("sum by (result) (rate(fanwise_jobs_total{@n}[$__rate_interval]))", "{{result}}")], "Messages read from the job queues. rejected and conflict are errors of producers.", unit="ops", alert="RejectedMessages"),
        graph("Completed", [("sum(rate(fanwise_jobs_completed_total{@n}[$__rate_interval]))", "completed")], "Jobs completed per second. None while recipients get outcomes: only large jobs run.", unit="ops"),
        graph("Longest standstill", [("max by (target) (fanwise_job_standstill_seconds{@t})", "{{target}}")], "Longest time without an outcome of a job that nothing holds back. The ladder alone may take half an hour.", unit="s", alert="JobStalled", steps=(1800, 2400)),
        graph("Pending", [(PENDING, "{{target}} {{priority}}")], "Recipients without an outcome.", stack=True),
        graph("Not taken yet", [("max(fanwise_jobs_waiting{@n})", "jobs"), ("max by (target) (fanwise_slices_waiting{@t})", "slices of {{target}}")], "Messages that no worker has taken. The HPA or KEDA may scale by them.", alert="NoWorker"),
    ]),
    ("Waiting", [
        graph("Start of slices", quantiles("fanwise_start_delay_seconds"), "Time from acceptance to the first call of a slice.", unit="s", alert="TimeLagHigh"),
        graph("Accept to outcome", [(quantile(0.99, "fanwise_accept_to_outcome_seconds", "priority"), "{{priority}} p99"), (quantile(0.5, "fanwise_accept_to_outcome_seconds", "priority"), "{{priority}} p50")], "high should be the fastest; if it is not, its own limits hold it.", unit="s", alert="TimeLagHigh"),
        graph("Duration of jobs", quantiles("fanwise_job_duration_seconds"), "Time from acceptance to completion.", unit="s"),
    ]),
    ("Fairness", [
        graph("Recipients by app", [('sum by (app) (rate(fanwise_app_recipients_total{@n, app=~"$app"}[$__rate_interval]))', "{{app}}")], "Apps with work share by their weights. Lower the limit of an app that takes too much.", unit="ops", stack=True),
        graph("Share by app", [('sum by (app) (rate(fanwise_app_recipients_total{@n, app=~"$app"}[$__rate_interval])) / on () group_left sum(rate(fanwise_app_recipients_total{@n}[$__rate_interval]))', "{{app}}")], "Share of all recipients. It follows `apps.NAME.weight` while the apps have work.", unit="percentunit"),
        graph("Failed by app", [('sum by (app) (rate(fanwise_app_recipients_total{@n, app=~"$app", outcome=~"failed|uncertain"}[$__rate_interval]))', "{{app}}")], "Tell the owner of the app.", unit="ops", alert="DeadLettersRising"),
        graph("Directives in force", [("max by (scope, action) (fanwise_directives{@n})", "{{scope}} {{action}}")], "Paused, cancelled, re-rated and parked jobs, apps and targets.", alert="ConfigFault"),
        graph("Notices", [("sum by (kind, result) (rate(fanwise_notices_total{@n}[$__rate_interval]))", "{{kind}} {{result}}")], "abandoned: a producer does not learn that its job is complete.", unit="ops"),
        graph("Events", [("sum by (event) (rate(fanwise_events_total{@n}[$__rate_interval]))", "{{event}}")], "Job events published per second, for those who subscribe to them.", unit="ops"),
    ]),
]

DEAD = [
    ("Not delivered", [
        stat("Dead letters waiting", "max(fanwise_dead_letters_waiting{@n})", "Redrive or purge them: `fanwise dead list`.", width=6, alert="DeadLettersRising"),
        stat("Rejected messages waiting", "max(fanwise_rejected_waiting{@n})", "Messages that are not valid jobs: `fanwise dead rejected`.", width=6, alert="RejectedMessages"),
        stat("Dead-lettered in this range", "sum(increase(fanwise_dead_letters_total{@t}[$__range]))", "Recipients that ended failed or uncertain.", width=6, alert="DeadLettersRising"),
        stat("Entries without an outcome", "sum(increase(fanwise_entries_missing_total{@n}[$__range]))", "Entries that no delivery has. Submit the job again.", width=6, alert="JobsInconsistent", steps=(1, 1)),
        graph("Dead-lettered", [(rate("fanwise_dead_letters_total", "target, outcome"), "{{target}} {{outcome}}")], "Recipients per second.", unit="ops", width=12, alert="DeadLettersRising"),
        graph("Letters that wait", [("max(fanwise_dead_letters_waiting{@n})", "dead letters"), ("max(fanwise_rejected_waiting{@n})", "rejected")], "They take disk of the broker until they are purged.", width=12, alert="DeadLettersRising"),
    ]),
    ("In doubt", [
        graph("Uncertain calls by policy", [(rate("fanwise_uncertain_total", "target, policy"), "{{target}} {{policy}}")], "retry: tried again; hold and drop: dead-lettered as uncertain.", unit="ops", alert="UncertainRising"),
        graph("Ended uncertain", [('sum by (target) (rate(fanwise_recipients_total{@t, outcome="uncertain"}[$__rate_interval]))', "{{target}}")], "Recipients of whom Fanwise does not know whether they got the message.", unit="ops", alert="UncertainRising"),
        graph("Without the ledger", [(rate("fanwise_unguarded_sends_total", "target"), "{{target}} unguarded"), (rate("fanwise_unrecorded_outcomes_total", "target"), "{{target}} unrecorded")], "Only apps that fail open do this.", unit="ops", alert="UnguardedSends"),
        graph("Claims by what they found", [("sum by (state) (rate(fanwise_claims_total{@n}[$__rate_interval]))", "{{state}}")], "in_doubt and taken_over: workers ended in the middle of calls.", unit="ops"),
        graph("Accounts", [("sum(increase(fanwise_jobs_inconsistent_total{@n}[$__rate_interval]))", "inconsistent"), ("sum(increase(fanwise_jobs_abandoned_total{@n}[$__rate_interval]))", "abandoned"), ("sum(increase(fanwise_ledger_went_back_total{@n}[$__rate_interval]))", "ledger went back")], "Anything above 0: look at `fanwise job verify`. abandoned: follow JobsAbandoned.", alert="JobsInconsistent"),
        graph("Slices by result", [("sum by (result) (rate(fanwise_slices_total{@n}[$__rate_interval]))", "{{result}}")], "lost: sessions broke; rejected: messages that are no slices.", unit="ops", alert="RejectedMessages"),
    ]),
]

SERVERS = [
    ("Redis, as Fanwise sees it", [
        graph("Ledger up", [("min by (instance) (fanwise_ledger_up{@n})", "{{instance}}")], "0: nothing is sent by this process.", alert="LedgerDown", top=1),
        graph("Errors by step", [("sum by (step) (rate(fanwise_ledger_errors_total{@n}[$__rate_interval]))", "{{step}}")], "Steps that failed.", unit="ops", alert="LedgerDown"),
        graph("Duration by step, p99", [(quantile(0.99, "fanwise_ledger_duration_seconds", "step"), "{{step}}")], "Above some ms: Redis is far, busy or swapping.", unit="s", alert="LedgerDown", steps=(0.025, 0.1)),
        graph("Steps", [("sum by (step) (rate(fanwise_ledger_duration_seconds_count{@n}[$__rate_interval]))", "{{step}}")], "Steps per second. The same work with more steps: smaller jobs, or repeats.", unit="ops", stack=True),
        graph("Went back", [("sum(increase(fanwise_ledger_went_back_total{@n}[$__rate_interval]))", "times")], "The ledger lost what was written last: look at its persistence.", alert="JobsInconsistent"),
        graph("Slices in delivery", [("sum by (instance) (fanwise_slices_in_flight{@n})", "{{instance}}")], "One instance far below the others: it is starved."),
    ]),
    ("RabbitMQ, as Fanwise sees it", [
        graph("Sessions", [("min by (instance, role) (fanwise_broker_up{@n})", "{{instance}} {{role}}")], "0: this process has no session.", alert="BrokerDown", top=1),
        graph("New sessions", [("sum by (instance) (increase(fanwise_broker_sessions_total{@n}[$__rate_interval]))", "{{instance}}")], "A session should last for days.", alert="ReconnectLoop"),
        graph("Takes nothing", [("max by (instance) (fanwise_broker_blocked{@n})", "{{instance}}")], "1: the broker is short of memory or disk.", alert="BrokerBlocked", top=1),
        graph("Publishes to repeat", [("sum(rate(fanwise_publish_failures_total{@n}[$__rate_interval]))", "publishes")], "Publishes that the broker did not confirm.", unit="ops", alert="BrokerDown"),
        graph("Messages in queues", [('sum by (queue) (rabbitmq_queue_messages{queue=~"fanwise.*"})', "{{queue}}"), ("sum(rabbitmq_queue_messages)", "all")], "From the plugin rabbitmq_prometheus; by queue where its metrics are detailed.", alert="BrokerBlocked"),
        graph("Free disk of the broker", [("min(rabbitmq_disk_space_available_bytes)", "free")], "From the plugin rabbitmq_prometheus.", unit="bytes", alert="DiskLow"),
    ]),
    ("Embedded engine", [
        graph("Files", [("max by (instance) (fanwise_store_bytes{@n})", "{{instance}}")], "They do not shrink; the space inside is used again.", unit="bytes", alert="DiskLow"),
        graph("Written", [("sum by (instance) (rate(fanwise_store_written_bytes_total{@n}[$__rate_interval]))", "{{instance}}")], "What the engine writes to its files. It wears a disk.", unit="Bps"),
        graph("Free disk", [("min by (instance) (fanwise_store_free_bytes{@n})", "{{instance}}")], "When it is full, nothing is accepted.", unit="bytes", alert="DiskLow"),
        graph("Commits", quantiles("fanwise_store_commit_duration_seconds"), "Above some tens of ms: the disk is slow or busy. Give `embedded.dir` a faster one.", unit="s", steps=(0.1, 0.5)),
    ]),
    ("Processes", [
        graph("CPU", [("sum by (instance) (rate(process_cpu_seconds_total{@n}[$__rate_interval]))", "{{instance}}")], "Workers at their CPU: add workers.", unit="percentunit", alert="RateFarBelowLimit"),
        graph("Memory", [("max by (instance) (process_resident_memory_bytes{@n})", "{{instance}}")], "It does not grow with the size of jobs.", unit="bytes"),
        graph("Draining", [("max by (instance) (fanwise_draining{@n})", "{{instance}}")], "1 from the stop signal on. For longer than `worker.drain_deadline`: the process hangs.", top=1),
    ]),
]

HTTP = [
    ("Requests", [
        graph("By status", [("sum by (status) (rate(fanwise_http_requests_total{@n}[$__rate_interval]))", "{{status}}")], "5xx: the broker, the ledger or a bound; see the other panels.", unit="ops", stack=True, alert="BrokerDown"),
        graph("By route", [("sum by (route) (rate(fanwise_http_requests_total{@n}[$__rate_interval]))", "{{route}}")], "`other` is everything that is no route.", unit="ops", stack=True),
        graph("In flight", [("sum by (instance) (fanwise_http_requests_in_flight{@n})", "{{instance}}")], "Near gateway.requests_max: add gateways."),
        graph("Duration, p99", [(quantile(0.99, "fanwise_http_request_duration_seconds", "route"), "{{route}}")], "Callers may ask to wait for their job, which counts here.", unit="s"),
        graph("Refused by bound", [("sum by (bound) (rate(fanwise_http_refused_total{@n}[$__rate_interval]))", "{{bound}}")], "One caller or all take too much; the access log says who.", unit="ops"),
        graph("Uploads", [("sum(rate(fanwise_upload_bytes_total{@n}[$__rate_interval]))", "bytes")], "Bytes of uploaded lists. Each waits on the disk of `gateway.upload_dir` until it is accepted.", unit="Bps"),
    ]),
    ("Before acceptance", [
        graph("before_accept by decision", [("sum by (result) (rate(fanwise_before_accept_total{@n}[$__rate_interval]))", "{{result}}")], "failed: no decision came; on_failure decides.", unit="ops"),
        graph("before_accept, duration", quantiles("fanwise_before_accept_duration_seconds"), "Callers of the gateway wait for it. Near its timeout: repair the endpoint.", unit="s"),
        stat("Certificate expires in", "min(fanwise_certificate_expires_timestamp_seconds{@n}) - time()", "Renew the two files; the gateway takes them within seconds.", unit="s", width=8, alert="CertificateExpires", steps=(14 * 86400,)),
    ]),
]

DASHBOARDS = [
    ("overview", "Overview", OVERVIEW), ("targets", "Targets and limits", TARGETS), ("jobs", "Jobs and fairness", JOBS),
    ("dead", "Dead letters and uncertain", DEAD), ("servers", "RabbitMQ and Redis", SERVERS), ("http", "HTTP interface", HTTP),
]


def main():
    stale = []
    for name, title, rows in DASHBOARDS:
        file = pathlib.Path(__file__).parent / f"{name}.json"
        text = json.dumps(dashboard(name, title, rows), indent=1, ensure_ascii=False) + "\n"
        if sys.argv[1:] != ["--check"]:
            file.write_text(text)
        elif not file.exists() or file.read_text() != text:
            stale.append(file.name)
    if stale:
        sys.exit(f"{', '.join(stale)}: not as generate.py writes it; run deploy/grafana/generate.py")


main()
