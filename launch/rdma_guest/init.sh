#!/bin/busybox sh
# The guest's first program, in its initramfs: loads modules, mounts the host's root (9p, read-only, under rdma-core and
# a tmpfs that takes what is written) and the exchange folder, and goes on there with inside.sh.
set -eu
busybox=/bin/busybox
$busybox mkdir -p /proc /sys /dev /host /scratch /root
$busybox mount -t proc proc /proc
$busybox mount -t sysfs sysfs /sys
$busybox mount -t devtmpfs dev /dev

while read -r module; do
  $busybox insmod "/modules/$module"
done </modules/order

options=trans=virtio,version=9p2000.L,msize=512000
$busybox mount -t 9p -o "$options,ro,cache=loose" root /host
$busybox mount -t tmpfs -o size=50% scratch /scratch
$busybox mkdir /scratch/upper /scratch/work
$busybox mount -t overlay -o lowerdir=/userland:/host,upperdir=/scratch/upper,workdir=/scratch/work root /root
$busybox mount --move /dev /root/dev
$busybox mkdir -p /root/dev/shm /root/dev/pts
$busybox mount -t tmpfs shm /root/dev/shm
$busybox mount -t devpts devpts /root/dev/pts
$busybox mount -t proc proc /root/proc
$busybox mount -t sysfs sysfs /root/sys
$busybox mount -t tmpfs run /root/run
$busybox mkdir /root/run/xpyd-guest
$busybox mount -t 9p -o "$options" exchange /root/run/xpyd-guest

exec $busybox chroot /root /bin/bash /run/xpyd-guest/inside.sh
