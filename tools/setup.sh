# shellcheck shell=bash
# Sourced by tools/test, tools/demo and the examples, which then call
#
#     setup test|demo|examples [PROGRAM]...
#                              system packages and the virtual environment; puts its programs first in PATH.
#                              A PROGRAM is one that is needed besides, and has its package's name
#     fuse_problem             says why this user cannot mount, or nothing
#     namespace_problem        says why this user cannot run jobs, or nothing
#
# PFS_VENV names another place for the environment, PFS_PYTHON another Python to make it with.
# A step prints one line; all that it says itself is in setup.log in the environment.

PROJECT=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
VENV=${PFS_VENV:-$PROJECT/.venv}
[[ $VENV == /* ]] || VENV=$PWD/$VENV
LOG=$VENV/setup.log

# die WHAT [WHAT TO DO]...
die() {
    printf '\n%s: %s\n' "$(basename -- "$0")" "$1" >&2
    shift
    (($# == 0)) || printf '    %s\n' "$@" >&2
    exit 1
}

# EPOCHREALTIME has the locale's decimal sign: only its digits count.
now() { printf '%s' "${EPOCHREALTIME//[!0-9]/}"; }

# seconds_since MICROSECONDS
seconds_since() {
    local us=$(($(now) - $1))
    printf '%d.%d s' $((us / 1000000)) $((us % 1000000 / 100000))
}

# step NAME COMMAND...
step() {
    local name=$1 start
    shift
    start=$(now)
    printf '  %-32s' "$name"
    printf '\n--- %s\n' "$name" >>"$LOG"
    if "$@" >>"$LOG" 2>&1 </dev/null; then
        printf '%8s\n' "$(seconds_since "$start")"
    else
        printf '  failed\n\n'
        tail -n 12 -- "$LOG" | sed 's/^/    | /' >&2
        die "'$name' did not work." "The whole log: $LOG"
    fi
}

has() { command -v "$1" >/dev/null 2>&1; }

# ---- the virtual environment -------------------------------------------------------------------------------------

# Environments hold absolute paths and belong to one Python: a moved or upgraded one is made anew.
venv_identity() { printf '%s\n' "$VENV" && "$VENV/bin/python" -I -VV 2>/dev/null; }

venv_usable() { [[ -x $VENV/bin/python && "$(venv_identity)" == "$(cat -- "$VENV/pfs-venv" 2>/dev/null)" ]]; }

# A path for Python to look at. The default is a module that looks for ours whenever a Python starts, 40 ms each time.
EDITABLE=(--config-settings editable_mode=compat)

# All that the installed packages follow from.
install_identity() {
    { venv_identity && printf '%s\n' "$PROJECT" "${EDITABLE[@]}" && cat -- "$PROJECT/setup.cfg" "$PROJECT/pyproject.toml"; } | sha256sum
}

# venv_ready GOAL
venv_ready() { venv_usable && [[ "$(install_identity)" == "$(cat -- "$VENV/pfs-installed-$1" 2>/dev/null)" ]]; }

make_venv() {
    # Only what this function made before may go.
    find "$VENV" -mindepth 1 -maxdepth 1 ! -name pfs-venv ! -name setup.log -exec rm -rf -- {} + &&
        "$PYTHON" -m venv "$VENV" &&
        venv_identity >"$VENV/pfs-venv"
}

# install GOAL
install() {
    (cd -- "$PROJECT" && "$VENV/bin/python" -m pip install --disable-pip-version-check --no-input "${EDITABLE[@]}" -e ".[$1]") &&
        install_identity >"$VENV/pfs-installed-$1"
}

# cannot_write DIRECTORY: it is the environment's, or has to hold it
cannot_write() {
    die "$(id -un) cannot write $1, where the virtual environment goes." \
        "Clone the project as that user, or name another place: PFS_VENV=DIR $0"
}

# Two set-ups at once would install into one environment.
lock_venv() {
    local parent
    parent=$(dirname -- "$VENV")
    mkdir -p -- "$parent" 2>/dev/null || cannot_write "$parent"
    { exec {VENV_LOCK}>>"$VENV.lock"; } 2>/dev/null || cannot_write "$parent"
    flock "$VENV_LOCK"
}

# Takes the lock; from here on the environment is this script's to make.
claim_venv_dir() {
    [[ -w $PROJECT ]] ||
        die "$(id -un) cannot write $PROJECT, where an installation leaves its metadata." "Clone the project as that user."
    if [[ -d $VENV && ! -e $VENV/pfs-venv && -n "$(ls -A -- "$VENV")" ]]; then
        die "$VENV exists and was not made by this script." "Move it away, or name another place: PFS_VENV=DIR $0"
    fi
    lock_venv
    { mkdir -p -- "$VENV" && : >>"$VENV/pfs-venv" && : >"$LOG"; } 2>/dev/null || cannot_write "$VENV"
}

# ---- Python and system packages ----------------------------------------------------------------------------------

suitable_python() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }

# Sets PYTHON, to nothing where there is none.
find_python() {
    if [[ -n ${PFS_PYTHON:-} ]]; then
        suitable_python "$PFS_PYTHON" || die "PFS_PYTHON=$PFS_PYTHON is not a Python of version 3.11 or newer."
        PYTHON=$PFS_PYTHON
        return
    fi
    for PYTHON in python3 python3.14 python3.13 python3.12 python3.11 /usr/bin/python3; do
        ! suitable_python "$PYTHON" || return 0
    done
    PYTHON=
}

# What PYTHON lacks for an environment with compiled packages: "venv", "dev", both or nothing.
python_lacks() {
    "$PYTHON" - <<'PY'
import importlib.util, os, sysconfig
if any(importlib.util.find_spec(module) is None for module in ("venv", "ensurepip")):
    print("venv")
if not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")):
    print("dev")
PY
}

missing_python_packages() {
    if [[ -z $PYTHON ]]; then
        printf 'python3\npython3-venv\npython3-dev\n'
        return
    fi
    local lack version
    version=$("$PYTHON" -c 'import sys; print("python%d.%d" % sys.version_info[:2])')
    for lack in $(python_lacks); do
        printf '%s-%s\n' "$version" "$lack"
    done
}

# missing_packages GOAL run|build: the names that Debian and Ubuntu give to what this machine lacks, one a line
missing_packages() {
    has fusermount3 || echo fuse3
    if [[ $1 == test ]]; then
        has getfattr || echo attr
        has rsync || echo rsync
    fi
    local program
    for program in ${PROGRAMS[@]+"${PROGRAMS[@]}"}; do
        has "$program" || echo "$program"
    done
    if [[ $2 == build ]]; then
        has pkg-config || echo pkg-config
        pkg-config --exists fuse3 2>/dev/null || [[ -e /usr/include/fuse3/fuse.h ]] || echo libfuse3-dev
        "${CC:-gcc}" -E -include stdio.h -x c /dev/null >/dev/null 2>&1 || printf 'gcc\nlibc6-dev\n'
        missing_python_packages
    fi
}

# Packages come from the lists at hand; only where that fails are the lists fetched.
apt_install() {
    local apt=("${AS_ROOT[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=120 -y -q)
    "${apt[@]}" install --no-install-recommends "$@" ||
        { "${apt[@]}" update && "${apt[@]}" install --no-install-recommends "$@"; }
}

# system_packages GOAL run|build
system_packages() {
    local missing
    [[ $2 == run ]] || find_python
    mapfile -t missing < <(missing_packages "$@")
    ((${#missing[@]})) || return 0

    local command="apt-get install -y --no-install-recommends ${missing[*]}"
    if ! has apt-get; then
        die "This machine lacks what Debian and Ubuntu call: ${missing[*]}" \
            "It has no apt-get: install them with its own package manager, then run this again."
    elif ((EUID == 0)); then
        AS_ROOT=()
    elif has sudo && sudo -n true 2>/dev/null; then
        AS_ROOT=(sudo -n)
    else
        die "These system packages are missing: ${missing[*]}" "An administrator installs them with:" "" \
            "sudo apt-get update && sudo $command" "" "Then run this again."
    fi
    [[ -w $LOG ]] || LOG=$(mktemp -t pfs-setup-XXXXXX.log)
    step "system packages: ${missing[*]}" apt_install "${missing[@]}"

    hash -r
    [[ $2 == run ]] || find_python
    mapfile -t missing < <(missing_packages "$@")
    if ((${#missing[@]})); then
        [[ $2 == run || -n $PYTHON ]] ||
            die "Python 3.11 or newer is needed; python3 here is $(python3 -V 2>&1 || true)." \
                "Debian 12 and Ubuntu 24.04 have one that fits; a path to another: PFS_PYTHON=PATH $0"
        die "After '$command' these are still missing: ${missing[*]}" \
            "The Python in use is $(command -v "${PYTHON:-python}"); another one: PFS_PYTHON=PATH $0" "The whole log: $LOG"
    fi
}

# ---- what the kernel allows --------------------------------------------------------------------------------------

fuse_problem() {
    if [[ ! -e /dev/fuse ]]; then
        echo "There is no /dev/fuse, so nothing can be mounted."
        echo "Load the module (modprobe fuse); in a container, start it with --device /dev/fuse --cap-add SYS_ADMIN."
    elif ! (: <>/dev/fuse) 2>/dev/null; then
        echo "$(id -un) may not open /dev/fuse, so nothing can be mounted ($(stat -c 'mode %a, owner %U:%G' /dev/fuse))."
        if ((EUID == 0)); then
            echo "In a container, start it with --device /dev/fuse --cap-add SYS_ADMIN."
        else
            echo "An administrator allows it now with 'chmod 0666 /dev/fuse', and for good with:"
            echo "    echo 'KERNEL==\"fuse\", MODE=\"0666\"' > /etc/udev/rules.d/99-fuse.rules"
        fi
    fi
}

# first_line FILE: its first line, or nothing where it does not exist
first_line() { { head -n 1 -- "$1"; } 2>/dev/null || true; }

namespace_problem() {
    if ((EUID == 0)); then
        unshare --mount true 2>/dev/null || {
            echo "root may not make a mount namespace here, so jobs cannot be given their /pfs."
            echo "In a container, start it with --cap-add SYS_ADMIN --security-opt apparmor=unconfined."
        }
    elif ! unshare --user --map-root-user --mount true 2>/dev/null; then
        echo "$(id -un) may not make a user namespace, so jobs cannot be given their /pfs without root."
        if [[ $(first_line /proc/sys/kernel/apparmor_restrict_unprivileged_userns) == 1 ]]; then
            echo "AppArmor forbids it; an administrator allows it with 'sysctl kernel.apparmor_restrict_unprivileged_userns=0'."
        elif [[ $(first_line /proc/sys/kernel/unprivileged_userns_clone) == 0 ]]; then
            echo "An administrator allows it with 'sysctl kernel.unprivileged_userns_clone=1'."
        elif [[ $(first_line /proc/sys/user/max_user_namespaces) == 0 ]]; then
            echo "An administrator allows it with 'sysctl user.max_user_namespaces=15000'."
        else
            echo "A chroot or a container's profile forbids it: run this outside of that, or as root."
        fi
    fi
}

# ------------------------------------------------------------------------------------------------------------------

# What tests of containers need. Where it cannot be had, these tests are skipped, and say so.
container_packages() {
    has podman || echo podman
    has crun || has runc || echo runc
    # on a host with both versions of cgroups, crun starts nothing
    [[ ! -d /sys/fs/cgroup/unified ]] || has runc || echo runc
    [[ -x /bin/busybox ]] || echo busybox-static
}

get_container_packages() {
    local missing as_root=()
    mapfile -t missing < <(container_packages | sort -u)
    ((${#missing[@]})) && has apt-get || return 0
    if ((EUID)); then
        has sudo && sudo -n true 2>/dev/null || return 0
        as_root=(sudo -n)
    fi
    AS_ROOT=("${as_root[@]}")
    [[ -w $LOG ]] || LOG=$(mktemp -t pfs-setup-XXXXXX.log)
    printf '  %-32s' "for containers: ${missing[*]}"
    if apt_install "${missing[@]}" >>"$LOG" 2>&1 </dev/null; then
        printf '%8s\n' done
    else
        printf '  not to be had: containers are not tested\n'
    fi
    hash -r
}

# setup GOAL [PROGRAM]...
setup() {
    PROGRAMS=("${@:2}")
    if venv_ready "$1"; then
        system_packages "$1" run
    else
        claim_venv_dir
        system_packages "$1" build
        venv_usable || step "virtual environment" make_venv
        # another set-up may have done this while we waited for the lock
        venv_ready "$1" || step "Python packages ($1)" install "$1"
        exec {VENV_LOCK}>&-
    fi
    [[ $1 != test ]] || get_container_packages
    export PATH="$VENV/bin:$PATH"
}
