#!/usr/bin/env bash
# Installs this clone, as it is now, on every host of the slices. Again after a change of the code: what is there is kept.
#
#   launch/tpu_vm/setup.sh --name=chop-tree --zone=us-east5-b --nfs=10.0.0.2:/runs
#
#   --name=NAME          of the queued resource
#   --zone=ZONE          of the TPUs
#   --project=PROJECT    Google Cloud project (default: gcloud's)
#   --nfs=SERVER:/SHARE  a directory that all hosts share and you may write, mounted at /mnt/shared (default: none)
#   --dry_run            prints the commands and runs none
#
# The token that lets hosts into the Ray cluster is this machine's ~/.ray/auth_token, made if there is none.

set -euo pipefail
# shellcheck source=slice.sh
. "$(dirname "$0")/slice.sh"

OPTION+=([nfs]="")
parse_options "$@"
check_slice
[[ -z ${OPTION[nfs]} || ${OPTION[nfs]} == ?*:/* ]] || die "--nfs=${OPTION[nfs]} is not of the form SERVER:/SHARE"

need_command git "install it: it knows which files belong to the clone"
clone=$(cd "$(dirname "$0")/../.." && pwd)
folder=FOLDER
if ! $DRY_RUN; then
    folder=$(mktemp -d)
    trap 'rm -rf "$folder"' EXIT
fi
make_ray_token
# What git ignores stays here; what is changed, or new and not committed, goes along, and what is deleted does not.
from=$(quoted "$clone") to=$(quoted "$folder/minestudio_jax.tar.gz")
# shellcheck disable=SC2016  # the variable is the inner shell's
there='while IFS= read -rd "" file; do if [[ -e $file || -L $file ]]; then printf "%s\0" "$file"; fi; done'
run bash -o pipefail -c "cd $from && git ls-files -z --cached --others --exclude-standard | $there | tar -czf $to --null -T -"
run cp "$RAY_TOKEN" "$folder/ray_auth_token"
queued_resources scp "$folder/minestudio_jax.tar.gz" "$folder/ray_auth_token" "${OPTION[name]}:" --node=all --worker=all
on_all_hosts mkdir -p minestudio_jax .ray
on_all_hosts tar -xzf minestudio_jax.tar.gz -C minestudio_jax
on_all_hosts install -m 600 ray_auth_token .ray/auth_token
on_all_hosts rm ray_auth_token
on_all_hosts bash "$HOST_SCRIPT" install "--nfs=${OPTION[nfs]}"
