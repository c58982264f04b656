#!/usr/bin/env bash
# Says how the queued resource is, and for every host whether its trainer is running, done, failed or absent.
#
#   launch/tpu_vm/status.sh --name=chop-tree --zone=us-east5-b
#
#   --name=NAME         of the queued resource
#   --zone=ZONE         of the TPUs
#   --project=PROJECT   Google Cloud project (default: gcloud's)
#   --dry_run           prints the commands and runs none

set -euo pipefail
# shellcheck source=slice.sh
. "$(dirname "$0")/slice.sh"

parse_options "$@"
check_slice
state=""
ask_state state ACTIVE
$DRY_RUN || echo "queued resource ${OPTION[name]}: ${state:-absent}"
[[ $state == ACTIVE ]] || exit 1
on_all_hosts bash "$HOST_SCRIPT" status
