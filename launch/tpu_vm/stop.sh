#!/usr/bin/env bash
# Stops the trainer in good order, with a checkpoint, and then Ray. The TPUs stay: delete.sh gives them back.
#
#   launch/tpu_vm/stop.sh --name=chop-tree --zone=us-east5-b
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
on_all_hosts bash "$HOST_SCRIPT" stop_learner
on_all_hosts bash "$HOST_SCRIPT" stop_ray
