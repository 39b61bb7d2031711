#!/bin/bash
# The guest's second program, on the host's root: the network, two Soft-RoCE ports, the shared folders, the command.
# Then power off. /run/xpyd-guest (the host's, writable) holds: shares (tag and path a line), command, status (ours).
set -euo pipefail
exchange=/run/xpyd-guest
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8

power_off() {
  sync
  echo o >/proc/sysrq-trigger
  sleep 60 # the first program must not end before the power does
}
trap power_off EXIT

ln -sf /proc/self/fd /dev/fd
echo rdma-guest >/proc/sys/kernel/hostname
ip link set lo up

# Two ports, one wire: what rxe0 sends to rxe1 crosses the veth pair, whose counters tell how much it was. Both ends are
# in one namespace (this kernel's Soft-RoCE knows only the first), so the kernel is told to use the wire all the same.
ip link add v0 mtu 9000 type veth peer name v1 mtu 9000
echo 0 >/proc/sys/net/ipv4/conf/all/rp_filter
for i in 0 1; do
  echo 1 >/proc/sys/net/ipv6/conf/v$i/disable_ipv6
  echo 1 >/proc/sys/net/ipv4/conf/v$i/accept_local
  echo 0 >/proc/sys/net/ipv4/conf/v$i/rp_filter
  ip addr add 10.7.0.$((i + 1))/24 dev v$i
  ip link set v$i up
  rdma link add rxe$i type rxe netdev v$i
done

while read -r tag path; do
  mkdir -p "$path"
  mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000 "$tag" "$path"
done <$exchange/shares

code=0
bash $exchange/command </dev/null >/dev/vport0p1 2>&1 || code=$?
echo $code >$exchange/status
