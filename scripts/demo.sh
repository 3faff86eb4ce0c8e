#!/usr/bin/env bash
# Shows one migration with zero packet loss, on this machine alone.
#
#   ./scripts/demo.sh                      one migration, step by step
#   ./scripts/demo.sh --compare            and the same VM by plain QEMU, and redirected after STOP
#   ./scripts/demo.sh --qemu 7.2 --pps N   see ./scripts/demo.sh --help
#
# Sets up a fresh Debian 12 machine first (root; a Rust toolchain must be there). Exits with 0 only if no
# packet was lost, doubled or reordered, katamaran has proven it, and nothing was left behind.
set -euo pipefail
cd "$(dirname "$0")/.."

./scripts/setup.sh
export PATH="$HOME/.cargo/bin:$PATH"
[ -x target/release/katamaran-lab ] || echo "building, which takes some minutes the first time" >&2
exec cargo xtask lab demo "$@"
