# shellcheck shell=bash
# InfiniBand or RoCE nodes with a network device per GPU: every worker uses the device beside its own GPU.
# `nvidia-smi topo -m` shows which (PIX or PXB between them). Worker k of a node takes the k-th name; with fewer names
# than workers they are shared in turn. fabric.net_devices of an experiment, where set, wins over this.
#   XPYD_NICS="mlx5_0:1 mlx5_1:1 mlx5_4:1 mlx5_5:1"
export XPYD_NICS="${XPYD_NICS:?profile ib: set XPYD_NICS, such as \"mlx5_0:1 mlx5_1:1\"}"
# Registered memory must not run into the limit that a login shell passes on.
ulimit -l unlimited 2>/dev/null || echo "warning: memlock is limited to $(ulimit -l) KiB; registration may fail" >&2
