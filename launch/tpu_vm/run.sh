#!/usr/bin/env bash
# Starts the trainer on every host of the slices. It goes on when this script ends; status.sh, logs.sh and stop.sh are for
# it. The same command continues a run that was stopped, preempted or broken.
#
#   launch/tpu_vm/run.sh --name=chop-tree --zone=us-east5-b -- \
#       --flagfile=configs/vpt_finetune_chop_tree.flags --run.dir=/mnt/shared/runs/chop_tree --trainer.mesh=data:-1,fsdp:4
#
#   --name=NAME         of the queued resource
#   --zone=ZONE         of the TPUs
#   --project=PROJECT   Google Cloud project (default: gcloud's)
#   --no_ray            Ray was not started: for --rollout.mode=device
#   --dry_run           prints the commands and runs none
#
# What follows -- are flags of the trainer; paths are those of the hosts, from the clone on. How many hosts there are and
# which is which JAX learns from the TPUs' environment.

set -euo pipefail
# shellcheck source=slice.sh
. "$(dirname "$0")/slice.sh"

OPTION+=([no_ray]=false)
parse_options "$@"
check_slice
refuse_flags trainer.launcher trainer.num_hosts trainer.host_index trainer.coordinator run.ray_address
need_flag run.dir "a directory that all hosts share, such as --run.dir=/mnt/shared/runs/chop_tree"

head="" cluster=()
if ! ${OPTION[no_ray]}; then
    ask_head_address head
    cluster=("--run.ray_address=$head:6379")
fi
on_all_hosts bash "$HOST_SCRIPT" learner -- "${FLAGS[@]}" --trainer.launcher=external "${cluster[@]}"
