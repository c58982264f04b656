#!/usr/bin/env bash
# What train.sbatch runs on every learner node: one process of the trainer, which has all GPUs of the node.
#
#   learner.sh --num_hosts=N --coordinator=NODE:PORT -- FLAGS OF THE TRAINER
#
#   --num_hosts=N            learner nodes
#   --coordinator=NODE:PORT  where the first of them waits for the others
#   --venv=FOLDER            virtual environment (default .venv)
#   --dry_run                prints the command and does not run it

set -euo pipefail
# shellcheck source=../lib.sh
. "$(dirname "$0")/../lib.sh"

OPTION=([num_hosts]="" [coordinator]="" [venv]=.venv)
parse_options "$@"
need_number num_hosts 1 "learner nodes"
need_option coordinator "give NODE:PORT of the first learner node"
$DRY_RUN || [[ -n ${SLURM_PROCID:-} ]] || die "SLURM_PROCID is not set: this script is for srun to run"

# Told nothing, JAX would find Slurm by itself and take one GPU for each task.
command=(env "${RAY_ENVIRONMENT[@]}" "${OPTION[venv]}/bin/python" -m minestudio_jax.train
    "${FLAGS[@]}" --trainer.launcher=external "--trainer.num_hosts=${OPTION[num_hosts]}"
    "--trainer.host_index=${SLURM_PROCID:-0}" "--trainer.coordinator=${OPTION[coordinator]}")
if $DRY_RUN; then
    run "${command[@]}"
    exit
fi

trainer="" told_to_stop=false
stop_trainer() {
    told_to_stop=true
    if [[ -n $trainer ]]; then kill -TERM "$trainer"; fi
}
# train.sbatch can have SIGUSR1 sent, to all processes of a node; Slurm itself sends SIGTERM.
trap 'stop_trainer' USR1 TERM
(
    trap '' USR1
    exec "${command[@]}"
) &
trainer=$!
if $told_to_stop; then stop_trainer; fi
code=0
wait "$trainer" || code=$?
while kill -0 "$trainer" 2>/dev/null; do # a signal has ended the wait
    code=0
    wait "$trainer" || code=$?
done
exit "$code"
