#!/usr/bin/env bash
# What train.sbatch runs on every node: Ray, until the node is told to end.
#
#   ray_node.sh --role=learner|rollout --head=NODE
#
#   --role=learner|rollout  a learner node takes part in the cluster, but plays nothing; the one that is the head is its head
#   --head=NODE             name of the head's node
#   --ray_port=N            of the head (default 6379)
#   --minecraft=N           instances that rollout workers may reserve on a rollout node (default 0)
#   --venv=FOLDER           virtual environment (default .venv)
#   --dry_run               prints the command and does not run it

set -euo pipefail
# shellcheck source=../lib.sh
. "$(dirname "$0")/../lib.sh"

OPTION=([role]="" [head]="" [ray_port]=6379 [minecraft]=0 [venv]=.venv)
parse_options "$@"
need_option head "give the name of the head's node"
need_number ray_port 1 "the port"
need_number minecraft 0 "instances that may play on a node"

HEAD_DEADLINE_S=120
resources=()
case ${OPTION[role]} in
    learner) cpus=0 ;;
    rollout)
        cpus=${SLURM_CPUS_ON_NODE:-$(nproc)}
        mapfile -t resources < <(minecraft_resource "${OPTION[minecraft]}")
        ;;
    *) die "--role=${OPTION[role]} is neither learner nor rollout" ;;
esac
if [[ ${OPTION[role]} == learner && ${SLURMD_NODENAME:-$(hostname)} == "${OPTION[head]}" ]]; then
    place=(--head "--port=${OPTION[ray_port]}" --include-dashboard=false)
else
    place=("--address=${OPTION[head]}:${OPTION[ray_port]}")
    wait_for_port "${OPTION[head]}" "${OPTION[ray_port]}" $HEAD_DEADLINE_S
fi
# The learner has the GPUs without asking Ray. A folder of its own: another user's /tmp/ray may not be written.
run env "${RAY_ENVIRONMENT[@]}" "${OPTION[venv]}/bin/ray" start --block "${place[@]}" "--num-cpus=$cpus" --num-gpus=0 \
    "--temp-dir=/tmp/ray-$(id -un)" "${resources[@]}"
