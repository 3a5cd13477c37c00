"""Compares the metrics that the dashboard and the alerts use with those that the server registers.

    python3 docker/check_metrics.py
"""

import json
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src/http/metrics.rs"
USERS = [ROOT / "docker/grafana/dashboards/dino.json", ROOT / "docker/prometheus/alerts.yml"]
# What each kind of metric is called in the answer of /metrics.
SUFFIXES = {"Counter": ["_total"], "Times": ["_bucket", "_sum", "_count"], "Gauge": [""], "Share": [""], "Info": ["_info"]}


def registered(source: str) -> set[str]:
    """Names in the answer of /metrics, by the fields of `Metrics` and their registrations."""
    kinds = {field: kind for field, kind in re.findall(r"^    (\w+): (?:Family<\w+, )?(Counter|Times|Gauge|Share)\b", source, re.MULTILINE)}
    names = set()
    for name, value in re.findall(r'register\(\s*"(\w+)",\s*"[^"]*",\s*(\w+)', source):
        names |= {f"dino_{name}{suffix}" for suffix in SUFFIXES[kinds.get(value, value)]}
    return names


def main() -> int:
    known = registered(SOURCE.read_text())
    unknown = {(path.name, name) for path in USERS for name in re.findall(r"\bdino_\w+", path.read_text()) if name not in known}
    json.loads(USERS[0].read_text())
    for file, name in sorted(unknown):
        print(f"{file} uses {name}, which {SOURCE.relative_to(ROOT)} does not register", file=sys.stderr)
    print(f"{len(known)} names are registered, {len(unknown)} unknown ones used")
    return bool(unknown) or not known


sys.exit(main())
