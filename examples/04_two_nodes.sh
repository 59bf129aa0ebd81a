#!/usr/bin/env bash
# Two "nodes" of two workers each, both on this machine, as they would run on two.
#
#     bash examples/04_two_nodes.sh --epochs 20
#
# On two machines run this on each of them, with the address of the first:
#
#     torchrun --nnodes 2 --nproc-per-node 2 --rdzv-id gan --rdzv-backend c10d --rdzv-endpoint FIRST:29400 \
#         examples/04_two_nodes.py
#
# Neighbours connect to each other directly, on ports of their own choosing. Where a machine has several networks, name
# the right one: GLOO_SOCKET_IFNAME=eth1.
set -euo pipefail

python=${PYTHON:-python}
port=${PORT:-29400}
workers=${WORKERS_PER_NODE:-2}
script=$(dirname "$0")/04_two_nodes.py
export OMP_NUM_THREADS=1

node() {
    "$python" -m torch.distributed.run --nnodes 2 --nproc-per-node "$workers" --rdzv-id gan --rdzv-backend c10d \
        --rdzv-endpoint "127.0.0.1:$port" "$script" "$@"
}

node "$@" &
first=$!
trap 'kill "$first" 2>/dev/null || true' EXIT
node "$@"
wait "$first"
