#!/bin/sh
# Checks the files of this folder without running any container: Dockerfile, compose file, Helm chart, Kubernetes resources against the
# schemas of the API and of the operators, and names that are written down twice: metrics, flags, error codes.
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
# What cannot be checked is said: a machine without a tool has checked less.
has() {
    command -v "$1" >/dev/null || { echo "not checked, for want of $1: $2" >&2; return 1; }
}
if has haproxy docker/haproxy; then
    haproxy -c -q -f docker/haproxy/haproxy.cfg
fi
# Of the base each file is complete; overlays are patches, which kustomize has to apply first.
resources=$(find docker/kubernetes/base docker/kubernetes/bulk -name '*.yaml' ! -name kustomization.yaml ! -name service-monitor.yaml)
# shellcheck disable=SC2086
$tools/bin/kubernetes-validate --quiet --strict --kubernetes-version 1.33 $resources
if has kubectl "the overlays of docker/kubernetes"; then
    for folder in base gpu bulk; do
        kubectl kustomize docker/kubernetes/$folder >$tools/kustomize-$folder.yaml
    done
fi
# The chart with its own values, and with those of its `ci` folder.
helm=$tools/bin/helm
chart=docker/helm/dino-server
$helm lint --quiet --strict $chart
$helm template dino $chart --namespace dino >$tools/helm-default.yaml
for values in $chart/ci/*-values.yaml; do
    $helm lint --quiet --strict $chart --values "$values"
    $helm template dino $chart --namespace dino --values "$values" >"$tools/helm-$(basename "$values" -values.yaml).yaml"
done
# The server reads numbers as they are written in values.yaml, and runs on one GPU.
for line in 'DINO_MAX_PIXELS: "50000000"' 'DINO_MAX_BATCH_DELAY: "0.002"' 'DINO_TRUST_DEVICE: "true"' 'DINO_MAX_BODY: "64M"'; do
    grep -qxF "  $line" $tools/helm-weights.yaml || { echo "the chart does not write $line" >&2; exit 1; }
done
refused=$($helm template dino $chart --set gpu.enabled=true --set gpu.count=2 2>&1 >/dev/null) && refused="nothing was refused"
case $refused in
*"a server runs on one GPU"*) ;;
*) echo "two GPUs of one pod: $refused" >&2; exit 1 ;;
esac
# Those of operators are not Kubernetes' own: they have no schema here, which is a warning.
set -- "$tools"/helm-*.yaml
if command -v kubectl >/dev/null; then
    set -- "$@" "$tools"/kustomize-*.yaml
fi
$tools/bin/kubernetes-validate --quiet --strict --kubernetes-version 1.33 "$@"
if has npm "the resources of operators"; then
    operators=.cache/deploy-operators
    [ -e $operators/node_modules ] || npm install --silent --no-audit --no-fund --prefix $operators \
        @kubernetes-models/keda@0.4.2 @kubernetes-models/prometheus-operator@6.0.0
    python3 -c 'import json, sys, yaml; print(json.dumps([each for file in sys.argv[1:] for each in yaml.safe_load_all(open(file))]))' \
        docker/kubernetes/base/service-monitor.yaml docker/kubernetes/gpu/autoscaler.yaml "$tools"/helm-*.yaml |
        node docker/check_crds.mjs "$PWD/$operators"
fi
