#!/usr/bin/env bash
# Starts Ray on every host of the slices, as one cluster whose head is the first host. A trainer and Ray that
# ran there are ended before.
#
#   launch/tpu_vm/start_ray.sh --name=chop-tree --zone=us-east5-b --minecraft=8
#
#   --name=NAME         of the queued resource
#   --zone=ZONE         of the TPUs
#   --project=PROJECT   Google Cloud project (default: gcloud's)
#   --minecraft=N       instances that rollout workers may reserve on each host with --rollout.resources (default 0)
#   --rollout_cpus=N    CPUs of each host that rollout workers may have (default: all)
#   --dry_run           prints the commands and runs none
#
# Not needed with --rollout.mode=device.

set -euo pipefail
# shellcheck source=slice.sh
. "$(dirname "$0")/slice.sh"

OPTION+=([minecraft]=0 [rollout_cpus]="")
parse_options "$@"
check_slice
need_number minecraft 0 "instances that may play on a host"
if [[ -n ${OPTION[rollout_cpus]} ]]; then need_number rollout_cpus 0 "CPUs of a host for rollout workers"; fi

head=""
ask_head_address head
on_all_hosts bash "$HOST_SCRIPT" ray "--head=$head" "--minecraft=${OPTION[minecraft]}" \
    "--rollout_cpus=${OPTION[rollout_cpus]}"
