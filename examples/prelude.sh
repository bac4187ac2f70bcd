# shellcheck shell=bash
# Sourced by each example's run script, which then calls
#
#     begin NAME FILE...       a new scratch directory with a store in it, which becomes the working directory; the example's files are copied there
#     chapter TITLE [TEXT]...  what comes next, and why
#     run COMMAND              shows a command and runs it: what is shown is, to the letter, what is run
#     ending TEXT...           where everything is, to play on
#
# The scratch directory is examples/.work/NAME, or PFS_EXAMPLE_DIR. It is made anew each time.

# shellcheck source=tools/setup.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/../tools/setup.sh"

EXAMPLES=$PROJECT/examples

if [[ -t 1 && -z ${NO_COLOR:-} ]]; then
    BOLD=$'\e[1m' CYAN=$'\e[36m' GREEN=$'\e[32m' PLAIN=$'\e[0m'
else
    BOLD='' CYAN='' GREEN='' PLAIN=''
fi

tell() { (($# == 0)) || printf '%s\n' "$@"; }

chapter() {
    printf '\n\n%s%s%s\n' "$CYAN$BOLD" "$1" "$PLAIN"
    shift
    tell "$@"
}

run() {
    SHOWN=$1
    printf '\n%s$ %s%s\n' "$BOLD" "$1" "$PLAIN"
    eval "$1"
    SHOWN=
}

finish() {
    local status=$?
    trap - EXIT
    ((status == 0)) || [[ -z ${SHOWN:-} ]] || printf '\nThe example stopped at: %s (exit code %s)\n' "$SHOWN" "$status" >&2
    exit "$status"
}

# begin NAME FILE...
begin() {
    local name=$1 problem
    shift
    WORK=${PFS_EXAMPLE_DIR:-$EXAMPLES/.work/$name}
    [[ $WORK == /* ]] || WORK=$PWD/$WORK
    mapfile -t problem < <(namespace_problem)
    ((${#problem[@]} == 0)) || die "${problem[@]}"
    # Only what this function made before may go.
    if [[ -d $WORK && ! -e $WORK/.pfs-example && -n "$(ls -A -- "$WORK")" ]]; then
        die "$WORK exists and was not made by this script." "Name another place: PFS_EXAMPLE_DIR=DIR $0"
    fi
    { mkdir -p -- "$WORK" && : >>"$WORK/.pfs-example"; } 2>/dev/null ||
        die "$(id -un) cannot write $WORK." "Name another place: PFS_EXAMPLE_DIR=DIR $0"
    find "$WORK" -mindepth 1 -maxdepth 1 ! -name .pfs-example -exec rm -rf --one-file-system -- {} +
    (($# == 0)) || (cd -- "$EXAMPLES/$name" && cp -R -- "$@" "$WORK")
    cd -- "$WORK" || exit
    export PFS_STORE=$WORK/store
    # shellcheck disable=SC2016
    printf 'export PATH=%q:"$PATH" PFS_STORE=%q\ncd %q\n' "$VENV/bin" "$PFS_STORE" "$WORK" >env.sh
    pfs init >/dev/null
    STARTED=$(now)
    trap finish EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM
}

ending() {
    local environment=$WORK/env.sh
    printf '\n\n%sThat was all%s, in %s. To play on:\n\n' "$GREEN$BOLD" "$PLAIN" "$(seconds_since "$STARTED")"
    printf '  %s\n' "source ${environment@Q}" "$@"
}
