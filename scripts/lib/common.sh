# shellcheck shell=bash
# Helpers shared by the scripts of this repository. Source it; it runs nothing by itself.
#
#   log/warn/die TEXT...     messages, on stderr, so that stdout stays free for results
#   need_packages PKG...     install with apt what is missing
#   need_qemu                install the system emulator and its firmware
#   cache_dir                print (and create) the folder for everything that can be rebuilt

log() { printf '%s: %s\n' "${POLLUX_SCRIPT:-${0##*/}}" "$*" >&2; }
warn() { log "warning: $*"; }
die() {
    log "error: $*"
    exit 1
}

# $POLLUX_CACHE, else the user's cache folder. Never inside the checkout: a `git clean` must not cost
# a quarter of an hour.
cache_dir() {
    local dir=${POLLUX_CACHE:-${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/pollux}
    mkdir -p "$dir" || die "cannot create the cache folder $dir (set POLLUX_CACHE)"
    (cd "$dir" && pwd)
}

need_root() { # WHY: fails early, and where the user sees it, if as_root cannot work
    [ "$(id -u)" = 0 ] || command -v sudo >/dev/null 2>&1 || die "need root to $1: run this as root, or install sudo"
}

# Runs a command as root: directly, or by sudo.
as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    else
        sudo "$@"
    fi
}

os_field() { # NAME: a field of os-release, empty if it is not there
    # shellcheck disable=SC1091,SC2154  # the file exists on every supported system
    (. /etc/os-release 2>/dev/null && eval "printf '%s' \"\${$1:-}\"")
}

# --- apt -----------------------------------------------------------------------------------------

apt_run() { # apt-get, without questions, waiting for another apt that is at work; shows its output only if it fails
    local log_file rc=0
    command -v apt-get >/dev/null 2>&1 || die "no apt-get here: only Debian and Ubuntu are supported"
    need_root "run apt-get $1"
    log_file=$(mktemp)
    as_root env DEBIAN_FRONTEND=noninteractive NEEDRESTART_SUSPEND=1 \
        apt-get -o DPkg::Lock::Timeout=600 -o Dpkg::Use-Pty=0 -q "$@" >"$log_file" 2>&1 </dev/null || rc=$?
    [ $rc = 0 ] || { printf '+ apt-get %s\n' "$*" && tail -n 30 "$log_file"; } >&2
    rm -f "$log_file"
    return $rc
}

apt_updated=
apt_update() { # once per process; the lock on the lists is not covered by apt's own waiting, hence the loop
    local try
    [ -z "$apt_updated" ] || return 0
    for try in 1 2 3 4 5; do
        if apt_run update; then
            apt_updated=yes
            return 0
        fi
        sleep $((try * 3))
    done
    die "apt-get update failed (see above): no network, or no working package source"
}

apt_knows() { # PKG: is there something that could be installed under this name?
    [ -n "$(apt-cache policy "$1" 2>/dev/null | awk '/Candidate:/ && $2 != "(none)" {print $2}')" ]
}

is_installed() {
    # shellcheck disable=SC2016  # the format string is dpkg's, not the shell's
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]
}

missing_packages() {
    local pkg
    for pkg in "$@"; do
        is_installed "$pkg" || printf '%s\n' "$pkg"
    done
}

# Installs what is missing of the named packages. Package lists are refreshed only if a package is
# unknown, or if the download fails because the lists are older than the mirror.
need_packages() {
    local missing pkg
    mapfile -t missing < <(missing_packages "$@")
    [ "${#missing[@]}" -gt 0 ] || return 0
    log "installing with apt: ${missing[*]}"
    for pkg in "${missing[@]}"; do
        apt_knows "$pkg" || apt_update
    done
    for pkg in "${missing[@]}"; do
        apt_knows "$pkg" || die "no package source here has '$pkg' (Debian 12+, Ubuntu 22.04+ with 'universe' have)"
    done
    apt_run install -y --no-install-recommends "${missing[@]}" && return 0
    apt_update
    apt_run install -y --no-install-recommends "${missing[@]}" ||
        die "apt could not install: ${missing[*]} (see above)"
}

apt_archive() { # URI of the distribution's own main archive, from apt's configuration
    local code
    code=$(os_field VERSION_CODENAME)
    # a source may name its suite by code name or as "stable" and the like
    # shellcheck disable=SC2016  # the format string is apt's
    apt-get indextargets --format '$(REPO_URI)|$(RELEASE)|$(CODENAME)|$(COMPONENT)' 'Created-By: Packages' 2>/dev/null |
        awk -F'|' -v code="$code" '($2 == code || $3 == code) && $4 == "main" && !done {print $1; done = 1}'
}

# The mirror from which this system itself gets its packages, so that nothing is hard-coded and a
# site's own mirror is respected. Cloud images name a file with a list of mirrors: its first entry.
apt_mirror() {
    local uri file
    uri=$(apt_archive)
    if [ -z "$uri" ]; then
        apt_update
        uri=$(apt_archive)
    fi
    case $uri in
    mirror+file:*)
        file=${uri#mirror+file:}
        uri=$(awk '!/^#/ && NF && !done {print $1; done = 1}' "${file%/}")
        ;;
    mirror*) uri= ;;
    esac
    [ -n "$uri" ] || die "cannot tell this system's package mirror from its apt sources"
    printf '%s\n' "${uri%/}"
}

# apt knows of proxies that are not in the environment; other downloaders have to be told.
apt_proxy() {
    local proxy=
    eval "$(apt-config shell proxy Acquire::http::Proxy)"
    case $proxy in DIRECT) proxy= ;; esac
    printf '%s\n' "${proxy:-${http_proxy:-}}"
}

add_backports() {
    local code suite file keyring
    code=$(os_field VERSION_CODENAME)
    suite=$code-backports
    # shellcheck disable=SC2016
    if apt-get indextargets --format '$(RELEASE)' 'Created-By: Packages' 2>/dev/null | grep -x "$suite" >/dev/null; then
        return 0
    fi
    file=/etc/apt/sources.list.d/pollux-backports.sources
    log "adding the package source $suite ($file)"
    {
        printf 'Types: deb\nURIs: %s\nSuites: %s\nComponents: main\n' "$(apt_mirror)" "$suite"
        keyring=/usr/share/keyrings/debian-archive-keyring.gpg
        [ ! -e $keyring ] || printf 'Signed-By: %s\n' $keyring
    } | as_root tee "$file" >/dev/null
    apt_updated=
    apt_update
}

# --- QEMU ----------------------------------------------------------------------------------------

# qemu-system-x86 and qemu-utils share files whose versions must match, and apt does not mix suites by
# itself: where qemu-utils came from backports, the emulator has to come from there as well.
# POLLUX_QEMU_BACKPORTS=1 takes backports anyway (Debian 12's own QEMU 7.2 cannot reconnect a
# vhost-user-scsi device; 8.2 and later can).
need_qemu() {
    local have suite
    suite=$(os_field VERSION_CODENAME)-backports
    need_packages seabios ovmf
    if ! is_installed qemu-system-x86; then
        # shellcheck disable=SC2016
        have=$(dpkg-query -W -f '${Version}' qemu-utils 2>/dev/null || true)
        case ${POLLUX_QEMU_BACKPORTS:-0}:$have in
        1:* | *~bpo*)
            add_backports
            log "installing with apt: qemu-system-x86 (from $suite)"
            apt_run install -y --no-install-recommends -t "$suite" qemu-system-x86 ||
                die "apt could not install qemu-system-x86 from $suite (see above)"
            ;;
        *) need_packages qemu-system-x86 ;;
        esac
    fi
    command -v qemu-system-x86_64 >/dev/null 2>&1 || die "qemu-system-x86 is installed but qemu-system-x86_64 is not in PATH"
}

qemu_version() { # as one number that can be compared: 10.0.2 -> 100002
    qemu-system-x86_64 --version | awk 'NR == 1 {split($4, v, "[.+-]"); printf "%d%02d%02d\n", v[1], v[2], v[3]}'
}
