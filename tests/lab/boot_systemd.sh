#!/bin/sh
# Runs a systemd as process 1 of a machine of its own: the files of this one, all writes to them thrown away, with the
# lab's libvirt and Ceph within reach. `unshare --mount` starts it; it starts itself once more as process 1.
# Of the machine's own units only those few are there that a service needs: none looks at real devices.
set -eu
group=/mnt/virt-rbd-backup-lab.$$
units=/usr/lib/systemd/system
needed="-.slice system.slice sysinit.target basic.target multi-user.target timers.target sockets.target paths.target
    slices.target shutdown.target network.target network-online.target systemd-journald.service
    systemd-journald.socket systemd-journald-dev-log.socket"

if [ $$ != 1 ]; then
    mount -t cgroup2 cgroup2 /mnt
    mkdir "$group"
    echo $$ >"$group/cgroup.procs"
    code=0
    setpriv --pdeathsig KILL unshare --mount --pid --ipc --uts --cgroup --fork --kill-child "$0" || code=$?
    echo $$ >/mnt/cgroup.procs
    find "$group" -depth -type d -exec rmdir {} +
    exit $code
fi

mount -t proc proc /proc
umount --recursive /sys/fs/cgroup
mount -t cgroup2 cgroup2 /sys/fs/cgroup # seen from the new namespace
mount -t tmpfs tmpfs /mnt
mkdir /mnt/run /mnt/state
mount --bind /run/libvirt /mnt/run
mount --bind /var/lib/libvirt /mnt/state
for name in etc opt usr var; do
    mkdir "/mnt/$name" "/mnt/$name.work"
    mount -t overlay overlay -o "lowerdir=/$name,upperdir=/mnt/$name,workdir=/mnt/$name.work" "/$name"
done
mount -t tmpfs -o mode=0755 tmpfs /run
mkdir -p /run/lock /run/libvirt
mount --move /mnt/run /run/libvirt
mount --move /mnt/state /var/lib/libvirt

mkdir /mnt/units
for name in $needed; do
    cp --no-dereference "$units/$name" /mnt/units 2>/dev/null || true # slices are built in
done
mount --bind /mnt/units $units
mkdir /mnt/none /mnt/own
mount --bind /mnt/none /usr/lib/systemd/system-generators
mount --bind /mnt/own /etc/systemd/system
rm -f /usr/sbin/policy-rc.d
exec env -i container=lab "PATH=$PATH" /usr/lib/systemd/systemd --system --unit=multi-user.target --log-target=console --log-level=notice
