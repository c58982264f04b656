#!/usr/bin/env bash
# Asks for TPU slices as a queued resource and waits until it has them. If one of that name is there, it waits for that.
#
#   launch/tpu_vm/create.sh --name=chop-tree --zone=us-east5-b --type=v6e-16 --runtime_version=v2-alpha-tpuv6e --spot
#
#   --name=NAME             of the queued resource; its slices are NAME-0, NAME-1, ...
#   --zone=ZONE             of the TPUs
#   --project=PROJECT       Google Cloud project (default: gcloud's)
#   --type=TYPE             accelerator type of each slice, such as v5litepod-16, v5p-32 or v6e-16
#   --runtime_version=NAME  software of the hosts: v2-alpha-tpuv6e for v6e, v2-alpha-tpuv5-lite for v5e, v2-alpha-tpuv5
#                           for v5p, tpu-ubuntu2204-base for v4 and older
#   --slices=N              slices, joined by the data centre's network (default 1)
#   --spot                  cheaper, and taken away when others need them
#   --deadline_s=N          seconds to wait for the TPUs; the request stays in the queue afterwards (default 86400)
#   --dry_run               prints the commands and runs none
#
# What follows -- goes to 'gcloud compute tpus queued-resources create', such as --network=NETWORK or --reserved.

set -euo pipefail
# shellcheck source=slice.sh
. "$(dirname "$0")/slice.sh"

OPTION+=([type]="" [runtime_version]="" [slices]=1 [spot]=false [deadline_s]=86400)
parse_options "$@"
check_slice
need_option type "give the accelerator type, such as --type=v6e-16"
need_option runtime_version "give the software version that fits the TPU, such as --runtime_version=v2-alpha-tpuv6e"
need_number slices 1 "slices"
need_number deadline_s 1 "seconds to wait for the TPUs"

POLL_S=30

request() {
    local options=("--accelerator-type=${OPTION[type]}" "--runtime-version=${OPTION[runtime_version]}" --async)
    if ((10#${OPTION[slices]} > 1)); then
        options+=("--node-count=${OPTION[slices]}" "--node-prefix=${OPTION[name]}")
    else
        options+=("--node-id=${OPTION[name]}-0")
    fi
    if ${OPTION[spot]}; then options+=(--spot); fi
    queued_resources create "${OPTION[name]}" "${options[@]}" "${FLAGS[@]}"
}

state=""
ask_state state ""
[[ -n $state ]] || request
ask_state state ACTIVE
until [[ $state == ACTIVE ]]; do
    case $state in
        FAILED | SUSPENDING | SUSPENDED | DELETING)
            echo "create.sh: error: queued resource ${OPTION[name]} is $state: remove it with delete.sh and ask anew" >&2
            exit 1
            ;;
    esac
    if ((SECONDS >= 10#${OPTION[deadline_s]})); then
        echo "create.sh: error: queued resource ${OPTION[name]} is still ${state:-not listed} after" \
            "--deadline_s=${OPTION[deadline_s]}: it stays in the queue; call again to wait on" >&2
        exit 1
    fi
    echo "create.sh: queued resource ${OPTION[name]} is ${state:-not listed yet}"
    sleep $POLL_S
    ask_state state ACTIVE
done
