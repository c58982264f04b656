#!/usr/bin/env bash
# What the other scripts of this folder run on a TPU host. Ray and the trainer are units of systemd: they outlive the
# connection that started them, and a host that shuts down, as it does when it is taken away, tells them with SIGTERM.
#
#   host.sh install [--nfs=SERVER:/SHARE]       a virtual environment with minestudio_jax and JAX for TPUs
#   host.sh ray --head=ADDRESS [--minecraft=N] [--rollout_cpus=N]
#   host.sh learner -- FLAGS OF THE TRAINER
#   host.sh log [--lines=N]                         all that the trainer has printed, or the last of it
#   host.sh status | stop_learner | stop_ray
#
#   --dry_run   prints the commands and runs none

set -euo pipefail
# shellcheck source=../lib.sh
. "$(dirname "$0")/../lib.sh"

LEARNER=minestudio_jax_learner RAY=minestudio_jax_ray # names of the units
STOP_DEADLINE_S=300
clone=$(cd "$(dirname "$0")/../.." && pwd)
bin=$clone/.venv/bin
log=$clone/learner.log

install_all() {
    command -v uv >/dev/null || [[ -x $HOME/.local/bin/uv ]] ||
        run sh -c "curl -LsSf https://astral.sh/uv/install.sh | sh"
    local uv=$HOME/.local/bin/uv
    if command -v uv >/dev/null; then uv=$(command -v uv); fi
    run "$uv" venv --allow-existing --python 3.12 "$clone/.venv"
    run "$uv" pip install --python "$bin/python" -c "$clone/constraints.txt" -e "$clone" "jax[tpu]"
    if [[ -n ${OPTION[nfs]} ]] && { $DRY_RUN || ! mountpoint -q /mnt/shared; }; then
        run sudo apt-get install -y nfs-common
        run sudo mkdir -p /mnt/shared
        run sudo mount -t nfs "${OPTION[nfs]}" /mnt/shared
    fi
}

start_unit() { # name, properties up to --, and the command
    local unit=$1 properties=()
    shift
    while [[ $1 != -- ]]; do
        properties+=("--property=$1")
        shift
    done
    stop_unit "$unit"
    # The limits are those of a login: libtpu pins memory, and Ray opens many files.
    run sudo systemd-run "--unit=$unit" "--uid=$(id -un)" "--working-directory=$clone" --quiet \
        --property=LimitMEMLOCK=infinity --property=LimitNOFILE=1048576 --property=TasksMax=infinity \
        "--property=TimeoutStopSec=$STOP_DEADLINE_S" --property=KillMode=mixed "${properties[@]}" "${@:2}"
}

stop_unit() { # name; waits until it has ended, and forgets how
    if ! $DRY_RUN && [[ $(systemctl show "$1" --property=LoadState --value) == not-found ]]; then return; fi
    run sudo systemctl stop "$1"
    if $DRY_RUN || systemctl is-failed --quiet "$1"; then run sudo systemctl reset-failed "$1"; fi
}

start_ray() {
    need_option head "give the address of the cluster's first host"
    need_number minecraft 0 "instances that may play on this host"
    local place=("--address=${OPTION[head]}:6379") cpus=() resources=()
    if [[ " $(hostname -I) " == *" ${OPTION[head]} "* ]]; then place=(--head --port=6379 --include-dashboard=false); fi
    if [[ -n ${OPTION[rollout_cpus]} ]]; then cpus=("--num-cpus=${OPTION[rollout_cpus]}"); fi
    mapfile -t resources < <(minecraft_resource "${OPTION[minecraft]}")
    # A trainer would lose the Ray it has, and systemd makes no unit anew that another one is still ordered after.
    stop_unit $LEARNER
    # The learner owns the chips: nothing that Ray starts may touch them. A host whose head is not up yet tries again.
    start_unit $RAY Restart=on-failure RestartSec=5 StartLimitIntervalSec=0 -- \
        env "${RAY_ENVIRONMENT[@]}" JAX_PLATFORMS=cpu "$bin/ray" start --block "${place[@]}" "${cpus[@]}" "${resources[@]}"
}

start_learner() {
    # Units end in the reverse order: at a shutdown Ray, the network and the share stay until the checkpoint is written.
    start_unit $LEARNER RemainAfterExit=yes "After=network.target remote-fs.target $RAY.service" \
        "StandardOutput=append:$log" "StandardError=append:$log" -- \
        env "${RAY_ENVIRONMENT[@]}" "$bin/python" -m minestudio_jax.train "${FLAGS[@]}"
}

say_status() {
    local state
    state=$(systemctl show $LEARNER --property=ActiveState --property=SubState --value | xargs)
    case $state in
        "active exited") echo "$(hostname): trainer done" ;;
        active* | deactivating* | activating*) echo "$(hostname): trainer running" ;;
        failed*) echo "$(hostname): trainer failed, exit code $(systemctl show $LEARNER --property=ExecMainStatus --value)" ;;
        *) echo "$(hostname): trainer absent" ;;
    esac
}

OPTION=([nfs]="" [head]="" [minecraft]=0 [rollout_cpus]="" [lines]=+1)
case ${1:-} in
    [a-z]*) parse_options "${@:2}" ;;
    *) parse_options "$@" ;; # --help ends here
esac
case ${1:-} in
    install) install_all ;;
    ray) start_ray ;;
    learner) start_learner ;;
    status) say_status ;;
    log) run tail "--lines=${OPTION[lines]}" "$log" ;; # +1: from the first on
    stop_learner) stop_unit $LEARNER ;;
    stop_ray) stop_unit $RAY ;;
    *) die "unknown command '${1:-}': --help lists those there are" ;;
esac
