"""Compares names that are written down twice: metrics in the dashboard and the alerts, flags and error codes in the manual.

    python3 docker/check_names.py
"""

import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
METRICS = "src/http/metrics.rs"
FLAGS = "src"
CODES = "src/http/problem.rs"
MANUAL = "docs/operations.md"
SHOWN = ["docker/grafana/dashboards/dino.json", "docker/prometheus/alerts.yml"]
# What each kind of metric is called in the answer of /metrics.
SUFFIXES = {"Counter": ["_total"], "Times": ["_bucket", "_sum", "_count"], "Gauge": [""], "Ratio": [""], "Info": ["_info"]}


def read(path: str) -> str:
    return (ROOT / path).read_text()


def metrics(source: str) -> set[str]:
    """Names in the answer of /metrics, by the fields of `Metrics` and their registrations."""
    kinds = dict(re.findall(r"^    (\w+): (?:Family<\w+, )?(Counter|Times|Gauge|Ratio)\b", source, re.MULTILINE))
    names = set()
    for name, value in re.findall(r'register\(\s*"(\w+)",\s*"[^"]*",\s*(\w+)', source):
        names |= {f"dino_{name}{suffix}" for suffix in SUFFIXES[kinds.get(value, value)]}
    return names


def flags(folder: str) -> set[str]:
    """Flags of the server that are variables in the environment too, by those names."""
    source = "".join(path.read_text() for path in sorted((ROOT / folder).rglob("*.rs")))
    return {"--" + name.lower().replace("_", "-") for name in re.findall(r'env = "DINO_(\w+)"', source)}


def codes(source: str) -> set[str]:
    """The error codes of the list `codes!`, in snake case."""
    body = source[source.index("\ncodes! {") : source.index("\n}\n", source.index("\ncodes! {"))]
    return {re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower() for name in re.findall(r"^        (\w+),", body, re.MULTILINE)}


def main() -> int:
    faults = []
    known = metrics(read(METRICS))
    for path in SHOWN:
        faults += [f"{path} uses {name}, which {METRICS} does not register" for name in set(re.findall(r"\bdino_\w+", read(path))) - known]
    manual = read(MANUAL)
    for source, names in [(FLAGS, flags(FLAGS)), (CODES, codes(read(CODES)))]:
        written = set(re.findall(r"(?<=`)(?:--)?[a-z][a-z0-9_-]*", manual))
        faults += [f"{MANUAL} does not name {name} of {source}" for name in names - written]
        if not names:
            faults.append(f"no names were found in {source}: has its form changed?")
    if not known:
        faults.append(f"no names were found in {METRICS}: has its form changed?")
    for fault in sorted(faults):
        print(fault, file=sys.stderr)
    return bool(faults)


sys.exit(main())
