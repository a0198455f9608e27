#!/bin/sh
# `make fast` needs a C compiler. Installs one where it is missing and this is possible (root, apt).
set -eu
command -v cc >/dev/null 2>&1 && exit 0
if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null 2>&1; then
    echo "no C compiler, and no right to install one: the program runs as plain Python" >&2
    exit 1
fi
export DEBIAN_FRONTEND=noninteractive
if ! { apt-get update -qq && apt-get install -y -qq --no-install-recommends gcc libc6-dev; } >/dev/null 2>&1; then
    echo "a C compiler could not be installed: the program runs as plain Python" >&2
    exit 1
fi
