#!/usr/bin/env bash
# Gives the TPUs back, whatever runs on them, and removes the queued resource. Does nothing if it is not there.
#
#   launch/tpu_vm/delete.sh --name=chop-tree --zone=us-east5-b
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
if [[ -n $state ]]; then queued_resources delete "${OPTION[name]}" --force --quiet; fi
