#!/usr/bin/env bash
# Runs one trainer as several processes of this machine, each with CPU devices of its own: what several hosts would do, to
# try it. They share a private Ray, and all ends together.
#
#   launch/local_multihost.sh --hosts=2 --devices=2 -- \
#       --flagfile=configs/quickstart.flags --replay.max_chunks=0 --run.dir=runs/two_hosts
#
#   --hosts=N            processes, each in the place of a learner host (default 2)
#   --devices=N          CPU devices of each (default 1)
#   --minecraft=N        instances that rollout workers may reserve with --rollout.resources (default 0)
#   --no_ray             starts no Ray: for --rollout.mode=device
#   --program=MODULE     what to run in place of minestudio_jax.train, with the same flags
#   --stop_deadline_s=N  seconds that the hosts have to end after SIGTERM, Ctrl-C or the end of one of them in failure;
#                        then they are killed (default 120)
#   --dry_run            prints the commands and runs none
#
# What follows -- are flags of the trainer. Every line of output begins with the host it comes from. SIGTERM and Ctrl-C
# become SIGTERM for every host. The exit code is the highest among the hosts'.

set -euo pipefail
# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"

OPTION=([hosts]=2 [devices]=1 [minecraft]=0 [no_ray]=false [program]=minestudio_jax.train [stop_deadline_s]=120)
parse_options "$@"
need_number hosts 1 "learner processes"
need_number devices 1 "CPU devices of a process"
need_number minecraft 0 "instances that may play on this machine"
need_number stop_deadline_s 1 "seconds that the hosts have to end"
refuse_flags trainer.launcher trainer.num_hosts trainer.host_index trainer.coordinator run.ray_address
remedy="activate the virtual environment in which minestudio_jax is installed"
need_command python "$remedy"
need_command ray "$remedy"

RAY_START_DEADLINE_S=120
RAY_STOP_DEADLINE_S=30
READ_DEADLINE_S=5
POLL_S=0.2

learners=() # process ids; each leads a process group
readers=()  # of the programs that prefix their output
ray=""
worst=0
deadline=0 # in SECONDS; 0: the hosts may run as long as they like

pause() {
    sleep $POLL_S || true # Ctrl-C ends it, too
}

is_running() { # process id of a child
    [[ $'\n'$(jobs -rp)$'\n' == *$'\n'"$1"$'\n'* ]]
}

wait_until_ended() { # seconds, and process ids of children; false if one of them still runs then
    local end=$((SECONDS + $1)) pid
    shift
    for pid in "$@"; do
        while is_running "$pid"; do
            ((SECONDS < end)) || return 1
            pause
        done
    done
}

clean_up() {
    local pid
    trap '' TERM INT HUP
    for pid in "${learners[@]}"; do
        kill -KILL -- "-$pid" 2>/dev/null || true # a host that has ended may have left processes of its own
    done
    if [[ -n $ray ]]; then
        kill -TERM "$ray" 2>/dev/null || true
        wait_until_ended $RAY_STOP_DEADLINE_S "$ray" || true
        kill -KILL -- "-$ray" 2>/dev/null || true
    fi
    wait_until_ended $READ_DEADLINE_S "${readers[@]}" || kill -KILL "${readers[@]}" 2>/dev/null || true
    rm -rf "$folder"
}

free_port() {
    python -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

start_ray() {
    local end=$((SECONDS + RAY_START_DEADLINE_S)) resources=()
    mapfile -t resources < <(minecraft_resource "${OPTION[minecraft]}")
    local command=(env "${environment[@]}" ray start --head --block "--port=$ray_port"
        --include-dashboard=false "--temp-dir=$folder/ray" "${resources[@]}")
    if $DRY_RUN; then
        run "${command[@]}"
        return
    fi
    setsid "${command[@]}" </dev/null >"$folder/ray.log" 2>&1 &
    ray=$!
    until [[ -s $folder/ray/ray_current_cluster ]]; do # what Ray writes when it has started
        if ! is_running "$ray" || ((SECONDS >= end)); then
            cat "$folder/ray.log" >&2
            echo "local_multihost.sh: error: Ray did not start; it says so above" >&2
            exit 1
        fi
        pause
    done
}

start_learner() { # index of the host
    local command=(env "${environment[@]}" JAX_PLATFORMS=cpu "JAX_NUM_CPU_DEVICES=${OPTION[devices]}"
        python -m "${OPTION[program]}" "${FLAGS[@]}" --trainer.launcher=external "--trainer.num_hosts=${OPTION[hosts]}"
        "--trainer.host_index=$1" "--trainer.coordinator=127.0.0.1:$coordinator_port" "${cluster[@]}")
    if $DRY_RUN; then
        run "${command[@]}"
        return
    fi
    mkfifo "$folder/$1.out"
    # In a session of its own, as all that is started here: a terminal's Ctrl-C is for this script alone.
    setsid sed -u "s/^/[host $1] /" <"$folder/$1.out" &
    readers+=($!)
    setsid "${command[@]}" </dev/null >"$folder/$1.out" 2>&1 &
    learners+=($!)
}

stop_learners() { # why
    local pid
    if ((${#learners[@]} < 10#${OPTION[hosts]})); then
        echo "local_multihost.sh: $1 before all hosts were started" >&2
        exit 143
    fi
    echo "local_multihost.sh: $1; the hosts have ${OPTION[stop_deadline_s]} s to end" >&2
    deadline=$((SECONDS + 10#${OPTION[stop_deadline_s]}))
    for pid in "${learners[@]}"; do
        if is_running "$pid"; then kill -TERM "$pid"; fi
    done
}

watch_learners() { # until all have ended; the highest of their exit codes is in `worst`
    local host code running=1 seen=()
    while ((running)); do
        running=0
        for host in "${!learners[@]}"; do
            if is_running "${learners[host]}"; then
                running=1
                if ((deadline && SECONDS >= deadline)); then
                    echo "local_multihost.sh: host $host did not end in time and is killed" >&2
                    kill -KILL -- "-${learners[host]}"
                fi
            elif [[ -z ${seen[host]:-} ]]; then
                seen[host]=1 code=0
                wait "${learners[host]}" || code=$?
                if ((code > worst)); then worst=$code; fi
                if ((code && !deadline)); then
                    echo "local_multihost.sh: host $host ended with code $code; the others have" \
                        "${OPTION[stop_deadline_s]} s to end by themselves" >&2
                    deadline=$((SECONDS + 10#${OPTION[stop_deadline_s]}))
                fi
            fi
        done
        if ((running)); then pause; fi
    done
}

folder=FOLDER ray_port=RAY_PORT coordinator_port=COORDINATOR_PORT cluster=()
if ! $DRY_RUN; then
    folder=$(mktemp -d /tmp/multihost-XXXXXX) # a short name: Ray's sockets lie below it
    trap clean_up EXIT
    trap 'stop_learners "told to stop"' TERM INT HUP
    ray_port=$(free_port) coordinator_port=$(free_port)
    RAY_TOKEN=$folder/token
fi
environment=("${RAY_ENVIRONMENT[@]}" "RAY_AUTH_TOKEN_PATH=$folder/token")
if ! ${OPTION[no_ray]}; then
    cluster=("--run.ray_address=127.0.0.1:$ray_port")
    $DRY_RUN || make_ray_token
    start_ray
fi
for ((host = 0; host < 10#${OPTION[hosts]}; host++)); do start_learner "$host"; done
if ! $DRY_RUN; then
    watch_learners
    exit "$worst"
fi
