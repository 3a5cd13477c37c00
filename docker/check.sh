#!/bin/sh
# Checks the files of this folder without running any container: Dockerfile, compose file, Kubernetes resources against the
# API's schemas, and names that are written down twice: metrics, flags, error codes.
set -eu
cd "$(dirname "$0")/.."
tools=.cache/deploy
if [ ! -e $tools/ready ] || [ docker/requirements.txt -nt $tools/ready ]; then
    rm -rf $tools
    python3 -m pip install --quiet --disable-pip-version-check --target $tools --requirement docker/requirements.txt
    touch $tools/ready
fi
export PYTHONPATH="$PWD/$tools"
$tools/bin/hadolint docker/Dockerfile
$tools/bin/check-jsonschema --quiet --builtin-schema vendor.compose-spec docker/compose.yaml
python3 docker/check_names.py
if command -v haproxy >/dev/null; then
    haproxy -c -q -f docker/haproxy/haproxy.cfg
fi
# Of the base each file is complete; overlays are patches, which kustomize has to apply first.
resources=$(find docker/kubernetes/base docker/kubernetes/bulk -name '*.yaml' ! -name kustomization.yaml ! -name service-monitor.yaml)
# shellcheck disable=SC2086
$tools/bin/kubernetes-validate --quiet --strict --kubernetes-version 1.33 $resources
if command -v kubectl >/dev/null; then
    for folder in base gpu bulk; do
        # ServiceMonitor is not of Kubernetes itself: it has no schema here, which is a warning.
        kubectl kustomize docker/kubernetes/$folder >$tools/$folder.yaml
        $tools/bin/kubernetes-validate --quiet --strict --kubernetes-version 1.33 $tools/$folder.yaml
    done
fi
