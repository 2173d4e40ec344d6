#!/bin/busybox sh
# The guest: mounts every virtio disk and writes one counter to all of them, in order, for ever.

/bin/busybox mkdir -p /proc /sys /dev /run /tmp /mnt
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
ln -s /run /var/run 2>/dev/null || { mkdir -p /var && ln -s /run /var/run; }

while read -r module; do
    insmod "/modules/$module"
done </modules/order

has_ext4() {
    [ "$(dd if="/dev/$1" bs=2 skip=540 count=1 2>/dev/null | hexdump -e '1/2 "%04x"')" = ef53 ]
}

disks=
for path in /sys/block/vd*; do
    [ -e "$path" ] || continue
    disk=${path##*/}
    mkdir -p "/mnt/$disk"
    has_ext4 "$disk" || mkfs.ext4 -q -F -E nodiscard,lazy_itable_init=1 "/dev/$disk"
    mount -t ext4 -o noinit_itable,sync "/dev/$disk" "/mnt/$disk" && disks="$disks $disk"
done

# A fault of the agent is a script that a test puts here for one of the moments "freeze" and "thaw".
cat >/run/fsfreeze-hook <<'EOF'
#!/bin/sh
[ ! -e "/run/on-$1" ] || . "/run/on-$1"
EOF
chmod +x /run/fsfreeze-hook

for name in /sys/class/virtio-ports/*/name; do
    if [ "$(cat "$name" 2>/dev/null)" = org.qemu.guest_agent.0 ]; then
        port=${name%/name}
        qemu-ga --method=virtio-serial --path="/dev/${port##*/}" --statedir=/run \
            --fsfreeze-hook=/run/fsfreeze-hook --daemonize
    fi
done

# A disk that was restored goes on counting where its backup stopped.
first=${disks# }
tick=$(sed 's/^0*//' "/mnt/${first%% *}/tick" 2>/dev/null)
tick=${tick:-0}
echo "lab: writing to${disks:- no disk}, from tick $tick"

# With "lab.records" on the kernel's command line each tick is appended to a file too, so that a gap shows;
# lines of 8 bytes, none of which lies in two blocks.
records=
if grep -q lab.records /proc/cmdline; then
    records=yes
    for disk in $disks; do
        printf 'b%06d\n' "$tick" >>"/mnt/$disk/records" # a boot: what was cut off just before may be missing
    done
fi

# With "lab.pause=0.5" on the kernel's command line it waits so many seconds after each tick: emulated, ten guests that
# write five times a second keep a processor of the host busy.
pause=$(sed -n 's/.*lab.pause=\([0-9.]*\).*/\1/p' /proc/cmdline)

# What the shell does itself costs an emulated processor next to nothing; a process costs it much.
mkfifo /run/never
while :; do
    tick=$((tick + 1))
    for disk in $disks; do
        # In place: the old or the new counter is there, never a file cut to nothing.
        printf '%020d\n' "$tick" 1<>"/mnt/$disk/tick"
        [ -z "$records" ] || printf '%07d\n' "$tick" >>"/mnt/$disk/records"
    done
    echo "lab: tick $tick"
    read -r -t "${pause:-0.2}" _ <>/run/never
done
