#!/usr/bin/env bash
# In native mode the operator says the whole command, such as: bash -c "kubernetes-jobmanager.sh kubernetes-application ".
set -euo pipefail
[ "$#" -gt 0 ] || { echo "docker-entrypoint.sh: wanted a command; this image is run by the Flink Kubernetes Operator" >&2; exit 2; }
exec "$@"
