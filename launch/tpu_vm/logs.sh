#!/usr/bin/env bash
# Fetches what the trainer has printed on every host, a file for each.
#
#   launch/tpu_vm/logs.sh --name=chop-tree --zone=us-east5-b --to=logs/chop-tree
#
#   --name=NAME         of the queued resource
#   --zone=ZONE         of the TPUs
#   --project=PROJECT   Google Cloud project (default: gcloud's)
#   --to=FOLDER         where the files go
#   --dry_run           prints the commands and runs none
#
# The run directory has more: logs/, metrics.jsonl, status.json.

set -euo pipefail
# shellcheck source=slice.sh
. "$(dirname "$0")/slice.sh"

OPTION+=([to]="")
parse_options "$@"
check_slice
need_option to "name the folder the logs are written to, such as --to=logs/${OPTION[name]}"
run mkdir -p "${OPTION[to]}"
queued_resources ssh "${OPTION[name]}" --node=all --worker=all "--output-directory=${OPTION[to]}" \
    "--command=$(quoted bash "$HOST_SCRIPT" log)"
