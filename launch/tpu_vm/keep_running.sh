#!/usr/bin/env bash
# Creates slices, sets them up, runs the trainer, and does so again whenever they are taken away or the run breaks, until
# the run is finished. For spot TPUs. Ctrl-C ends this script and nothing else: call it again, and it takes up where it was.
#
#   launch/tpu_vm/keep_running.sh --name=chop-tree --zone=us-east5-b --type=v6e-16 --runtime_version=v2-alpha-tpuv6e \
#       --spot --nfs=10.0.0.2:/runs --minecraft=8 -- \
#       --flagfile=configs/vpt_finetune_chop_tree.flags --run.dir=/mnt/shared/runs/chop_tree
#
#   --name, --zone, --project, --type, --runtime_version, --slices, --spot    as in create.sh
#   --nfs                                                                     as in setup.sh
#   --minecraft, --rollout_cpus                                               as in start_ray.sh
#   --gcloud=OPTIONS    what create.sh takes after --, separated by spaces, such as --gcloud='--network=NETWORK --reserved'
#   --no_ray            no Ray is started: for --rollout.mode=device
#   --poll_s=N          seconds between two looks at the run (default 60)
#   --max_relaunches=N  so often a run in trouble is taken up again (default 100); ten looks in a row at a run that runs
#                       end the trouble, and what comes after is counted from one on
#   --dry_run           prints the commands of one launch and runs none
#
# What follows -- are flags of the trainer. The TPUs stay when the run is finished or given up: delete.sh gives them back.
# Exit code 2 says that an option is wrong, or that the trainer ended with this code five times in a row. Before stop.sh, end
# this script, or it starts the run again.

set -euo pipefail
here=$(dirname "$0")
# shellcheck source=slice.sh
. "$here/slice.sh"

OPTION+=([type]="" [runtime_version]="" [slices]=1 [spot]=false [gcloud]="" [nfs]="" [minecraft]=0 [rollout_cpus]=""
    [no_ray]=false [poll_s]=60 [max_relaunches]=100)
parse_options "$@"
check_slice
need_number poll_s 1 "seconds between two looks at the run"
need_number max_relaunches 0 "relaunches"

slice=("--name=${OPTION[name]}" "--zone=${OPTION[zone]}" "--project=${OPTION[project]}")
if $DRY_RUN; then slice+=(--dry_run); fi
spot=() no_ray=()
if ${OPTION[spot]}; then spot=(--spot); fi
if ${OPTION[no_ray]}; then no_ray=(--no_ray); fi
read -ra gcloud <<<"${OPTION[gcloud]}"

MISSED_LOOKS=3 # so many in a row that do not reach the hosts mean that the run is broken
SOUND_LOOKS=10 # so many at a run that runs, and it is in trouble no longer
REFUSALS=5      # a wrong setting; fewer may be a host that came late, or the lock of one that vanished, 5 min long
LAST_LINES=20

launch() { # all that a run needs; what is there already is kept; options more for each of the scripts
    "$here/create.sh" "${slice[@]}" "$@" "--type=${OPTION[type]}" "--runtime_version=${OPTION[runtime_version]}" \
        "--slices=${OPTION[slices]}" "${spot[@]}" -- "${gcloud[@]}" &&
        "$here/setup.sh" "${slice[@]}" "$@" "--nfs=${OPTION[nfs]}" &&
        { ${OPTION[no_ray]} || "$here/start_ray.sh" "${slice[@]}" "$@" "--minecraft=${OPTION[minecraft]}" \
            "--rollout_cpus=${OPTION[rollout_cpus]}"; } &&
        "$here/run.sh" "${slice[@]}" "$@" "${no_ray[@]}" -- "${FLAGS[@]}"
}

look() { # says in `found`: running, finished, refused, broken, queued, gone or unknown
    local state="" said
    found=unknown
    ask_state state ACTIVE || return 0
    case $state in
        ACTIVE) ;;
        "" | FAILED | SUSPENDING | SUSPENDED | DELETING)
            found=gone
            return
            ;;
        *)
            found=queued
            return
            ;;
    esac
    if ! said=$(on_all_hosts bash "$HOST_SCRIPT" status); then
        missed=$((missed + 1))
        if ((missed >= MISSED_LOOKS)); then found=broken; fi
        return
    fi
    missed=0
    found=broken
    case $said in
        # Absent: never started, or told to stop by a host that was shut down, which need not be the end of the run.
        *"trainer failed"* | *"trainer absent"*)
            # The trainer's own verdict on its settings, on whichever host.
            if [[ $said =~ "trainer failed, exit code 2"([^0-9]|$) ]]; then found=refused; fi
            ;;
        *"trainer running"*) found=running ;;
        *"trainer done"*) found=finished ;;
    esac
}

take_up() { # launches the run that was `found` so, or gives it up
    # What was there before the first launch may have had other flags.
    if [[ $found == refused ]] && ((launches)); then refusals=$((refusals + 1)); else refusals=0; fi
    if ((refusals >= REFUSALS)); then
        on_all_hosts bash "$HOST_SCRIPT" log "--lines=$LAST_LINES" >&2 || true
        die "the trainer ended with exit code 2 $REFUSALS times in a row, which another launch does not heal: a setting is wrong," \
            "or hosts or nodes that it needs are not there; its last words are above. Put it right and call again"
    fi
    if ((launches > 10#${OPTION[max_relaunches]})); then
        echo "keep_running.sh: error: the run is $found again after --max_relaunches=${OPTION[max_relaunches]}:" \
            "logs.sh has what it said" >&2
        exit 1
    fi
    launches=$((launches + 1)) missed=0 sound=0
    echo "keep_running.sh: the run is $found: launch $launches"
    case $found in
        broken | refused) "$here/stop.sh" "${slice[@]}" || true ;;
        gone) "$here/delete.sh" "${slice[@]}" || true ;;
    esac
    launch || echo "keep_running.sh: the launch failed; the next attempt is in ${OPTION[poll_s]} s" >&2
}

if $DRY_RUN; then
    launch
    "$here/status.sh" "${slice[@]}"
    "$here/stop.sh" "${slice[@]}"
    "$here/delete.sh" "${slice[@]}"
    exit
fi
# Whatever is wrong with an option is told now, not once the TPUs are there.
launch --dry_run >/dev/null || exit
launches=0 refusals=0 missed=0 sound=0
look
while [[ $found != finished ]]; do
    case $found in
        running)
            sound=$((sound + 1))
            if ((sound >= SOUND_LOOKS)); then launches=1 refusals=0; fi
            ;;
        unknown) ;;
        *) take_up ;;
    esac
    sleep "${OPTION[poll_s]}"
    look
done
echo "keep_running.sh: the run is finished; delete.sh gives the TPUs back"
