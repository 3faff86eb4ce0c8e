#!/usr/bin/env bash
# Tests katamaran.
#
#   ./scripts/test.sh          everything; sets up a fresh Debian 12 machine first (root)
#   ./scripts/test.sh smoke    the fast part: needs neither root nor QEMU nor an eBPF toolchain
set -euo pipefail
cd "$(dirname "$0")/.."

case ${1:-all} in
    smoke) exec cargo xtask test smoke ;;
    all)
        ./scripts/setup.sh
        export PATH="$HOME/.cargo/bin:$PATH"
        exec cargo xtask test
        ;;
    *)
        echo "usage: $0 [smoke]" >&2
        exit 2
        ;;
esac
