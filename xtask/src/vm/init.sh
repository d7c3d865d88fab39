#!/bin/sh
# The first process of a test machine. Serial ports: 0 kernel log, 1 stdout and
# 2 stderr of the command, 3 what this script tells the host. The host ends the machine.
export PATH=/bin:/sbin:/usr/bin:/usr/sbin HOME=/tmp
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /tmp
mount -t tracefs tracefs /sys/kernel/tracing
mount -t debugfs debugfs /sys/kernel/debug
mount -t bpf bpf /sys/fs/bpf
mount -t cgroup2 cgroup2 /sys/fs/cgroup
# What a command prints arrives as it is: no echo, no carriage returns.
for port in 1 2 3; do stty -F /dev/ttyS$port raw -echo; done
exec 3>/dev/ttyS3
ip link set lo up
while read -r module; do
    modprobe "$module" || echo "warning modprobe $module failed" >&3
done </netprobe/modules
. /netprobe/environment
if [ -d /bcc ]; then
    mkdir /bcc/dev /bcc/proc /bcc/sys /bcc/tmp
    for dir in dev proc sys; do mount --rbind /$dir /bcc/$dir; done
fi
cd /tmp
echo up >&3
sh /netprobe/command </dev/null >/dev/ttyS1 2>/dev/ttyS2 3>&-
code=$?
[ $code != 0 ] && grep -q netprobe.verbose /proc/cmdline && dmesg >/dev/ttyS0
# Setting a port waits until everything before has been sent.
for port in 0 1 2; do stty -F /dev/ttyS$port raw -echo; done
echo "exit $code" >&3
stty -F /dev/ttyS3 raw
reboot -f
