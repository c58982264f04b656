# What the scripts of this folder share: which queued resource is meant, and how its hosts are reached. Sourced, never run.
# shellcheck shell=bash
# shellcheck source=../lib.sh
. "${BASH_SOURCE[0]%/*}/../lib.sh"

# shellcheck disable=SC2034  # the scripts add options of their own
OPTION=([name]="" [zone]="" [project]="")
# shellcheck disable=SC2034
HOST_SCRIPT=minestudio_jax/launch/tpu_vm/host.sh # on the hosts, below the home directory

where=()

check_slice() { # after parse_options
    need_option name "choose a name for the queued resource, such as --name=chop-tree"
    [[ ${OPTION[name]} =~ ^[a-z]([a-z0-9-]*[a-z0-9])?$ ]] ||
        die "--name=${OPTION[name]} is no name for a queued resource: small letters, digits and hyphens, a letter first"
    need_option zone "name the zone of the TPUs, such as --zone=us-east5-b; 'gcloud compute tpus locations list' has them"
    need_command gcloud "install the Google Cloud CLI (https://cloud.google.com/sdk/docs/install) and run 'gcloud init'"
    where=("--zone=${OPTION[zone]}")
    if [[ -n ${OPTION[project]} ]]; then where+=("--project=${OPTION[project]}"); fi
}

queued_resources() { # verb and arguments
    run gcloud compute tpus queued-resources "$@" "${where[@]}"
}

on_all_hosts() { # a command and its arguments, run on every host of every slice at the same time
    queued_resources ssh "${OPTION[name]}" --node=all --worker=all "--command=$(quoted "$@")"
}

ask_state() { # variable for the queued resource's state, empty if there is none of that name; what a dry run takes for it
    ask "$1" "$2" gcloud compute tpus queued-resources list "${where[@]}" \
        "--filter=name~/queuedResources/${OPTION[name]}\$" "--format=value(state.state)"
}

ask_head_address() { # variable for the address of the first host, which is the head of the Ray cluster
    ask "$1" HEAD_ADDRESS gcloud compute tpus tpu-vm describe "${OPTION[name]}-0" "${where[@]}" \
        "--format=value(networkEndpoints[0].ipAddress)"
}
