# Shell functions that the launchers share. Sourced, never run.
# shellcheck shell=bash
#
# A launcher declares its options, with their defaults, in OPTION before it calls parse_options; an option whose default
# is `false` is a switch. Its head comment is its help.

# Who does not know the token may not use the cluster; an actor that was given no accelerator keeps the variables of its
# own runtime environment.
# shellcheck disable=SC2034
RAY_ENVIRONMENT=(RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0 RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO=0 RAY_worker_niceness=0)
RAY_TOKEN=${RAY_AUTH_TOKEN_PATH:-$HOME/.ray/auth_token}

if ((BASH_VERSINFO[0] < 5)); then
    echo "${0##*/}: error: this is bash $BASH_VERSION: install bash 5, and have it before the older one in PATH" >&2
    exit 2
fi

DRY_RUN=false
FLAGS=() # what follows -- on the command line
declare -A OPTION

die() { # what is wrong, and the remedy
    echo "${0##*/}: error: $*" >&2
    exit 2
}

quoted() { # the arguments as one line from which a shell would read them back
    local word line=()
    for word in "$@"; do
        case $word in
            '' | *[!A-Za-z0-9_./:=,@%+-]*) line+=("${word@Q}") ;;
            *) line+=("$word") ;;
        esac
    done
    echo "${line[*]}"
}

run() { # a command; a dry run prints it instead
    if $DRY_RUN; then quoted "$@"; else "$@"; fi
}

ask() { # variable, what a dry run takes for the answer, and the command whose output is the answer
    local -n answer=$1
    if $DRY_RUN; then
        quoted "${@:3}"
        answer=$2
    else
        # shellcheck disable=SC2034  # a reference to the caller's variable
        answer=$("${@:3}")
    fi
}

parse_options() { # the command line
    local name
    while (($#)); do
        case $1 in
            --help | -h)
                sed -n '2,/^$/s/^# \{0,1\}//p' "$0"
                exit 0
                ;;
            --dry_run) DRY_RUN=true ;;
            --)
                FLAGS=("${@:2}")
                return
                ;;
            --*)
                name=${1#--}
                name=${name%%=*}
                [[ $name =~ ^[a-z_]+$ && -v OPTION[$name] ]] ||
                    die "unknown option ${1%%=*}: --help lists those there are; flags of the trainer come after --"
                if [[ ${OPTION[$name]} == true || ${OPTION[$name]} == false ]]; then
                    [[ $1 == "--$name" ]] || die "$1: --$name is a switch and takes no value"
                    OPTION[$name]=true
                else
                    [[ $1 == *=* ]] || die "--$name lacks its value: give it as --$name=..."
                    OPTION[$name]=${1#*=}
                fi
                ;;
            *) die "unexpected argument '$1': options are given as --name=value, flags of the trainer after --" ;;
        esac
        shift
    done
}

need_option() { # name, and where its value is to be had
    [[ -n ${OPTION[$1]} ]] || die "--$1 is missing: $2"
}

need_number() { # name, the least it may be, and what it counts
    if ! [[ ${OPTION[$1]} =~ ^[0-9]{1,9}$ ]] || ((10#${OPTION[$1]} < $2)); then
        die "--$1=${OPTION[$1]} is not a whole number of at least $2: give the number of $3"
    fi
}

need_command() { # program, and how to get it; a dry run needs none
    $DRY_RUN || command -v "$1" >/dev/null || die "the program '$1' is not there: $2"
}

has_flag() { # name of a flag of the trainer, looked for after --
    local flag
    for flag in "${FLAGS[@]}"; do
        [[ $flag == "--$1" || $flag == "--$1="* ]] && return
    done
    return 1
}

need_flag() { # name of a flag of the trainer, and what to give
    has_flag "$1" || die "the trainer's --$1 is missing after --: $2"
}

refuse_flags() { # names of flags of the trainer that the launcher itself gives
    local name
    for name in "$@"; do
        ! has_flag "$name" || die "--$name is given by this script: leave it out"
    done
}

minecraft_resource() { # options of ray start that tell how many instances may be reserved on a node
    if ((10#$1)); then echo "--resources={\"minecraft\": $1}"; fi
}

make_ray_token() { # the secret of a cluster's nodes, where Ray itself looks for it; one that is there is kept
    if [[ -s $RAY_TOKEN ]]; then return; fi
    run mkdir -p "${RAY_TOKEN%/*}"
    run sh -c "umask 077; od -An -N32 -tx1 /dev/urandom | tr -d ' \n' > $(quoted "$RAY_TOKEN")"
}

wait_for_port() { # host, port, and seconds it may take until something listens there
    local end=$((SECONDS + $3))
    if $DRY_RUN; then return; fi
    until (: <"/dev/tcp/$1/$2") 2>/dev/null; do
        if ((SECONDS >= end)); then
            echo "${0##*/}: error: nothing listens at $1:$2 after $3 s" >&2
            return 1
        fi
        sleep 1
    done
}
